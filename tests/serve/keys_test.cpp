// Who may ask, and the salt that keeps what they read apart.
#include "serve/keys.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace hadal::serve {
namespace {

using testing::HasSubstr;

class KeysTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = (std::filesystem::temp_directory_path() / "hadal_keys_XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  static int mode(const std::filesystem::path& path) {
    struct stat info {};
    EXPECT_EQ(::stat(path.c_str(), &info), 0);
    return static_cast<int>(info.st_mode & 0777);
  }
  std::filesystem::path directory_;
};

HttpRequest request_with(const std::string& name, const std::string& value) {
  HttpRequest request;
  request.headers.emplace_back(name, value);
  return request;
}

TEST_F(KeysTest, AKeyIsKnownByAnyOfItsHeaders) {
  const auto keys =
      ApiKeys::parse("# of the team\nsecret-one\n\n  sha256:" + to_hex(sha256("secret-two")) + "  \r\n");
  ASSERT_TRUE(keys.has_value());
  for (const char* header : {"x-api-key", "api-key"})
    EXPECT_TRUE(keys->identify(request_with(header, "secret-one")));
  EXPECT_TRUE(keys->identify(request_with("authorization", "Bearer secret-two")));
  EXPECT_NE(keys->identify(request_with("api-key", "secret-one")),
            keys->identify(request_with("api-key", "secret-two")));
  for (const char* wrong : {"", "secret", "secret-one2", "Bearer secret-one", "# of the team"})
    EXPECT_FALSE(keys->identify(request_with("x-api-key", wrong))) << wrong;
  EXPECT_FALSE(keys->identify(HttpRequest()));
  EXPECT_EQ(ApiKeys().identify(HttpRequest()), "anonymous");
}

TEST_F(KeysTest, BadFilesAreNamed) {
  EXPECT_THAT(ApiKeys::parse("a\nsha256:12\n").error().message(), HasSubstr("line 2: sha256: needs 64"));
  EXPECT_THAT(ApiKeys::parse("# nothing\n").error().message(), HasSubstr("there is no key in it"));
  const auto path = directory_ / "keys";
  std::ofstream(path) << "secret\n";
  ::chmod(path.c_str(), 0644);
  EXPECT_THAT(ApiKeys::load(path).error().message(), HasSubstr("chmod 600"));
  ::chmod(path.c_str(), 0600);
  EXPECT_TRUE(ApiKeys::load(path).has_value());
  EXPECT_THAT(ApiKeys::load(directory_ / "none").error().message(),
              HasSubstr((directory_ / "none").string()));
}

TEST_F(KeysTest, TheSaltStaysAndNobodyElseCanReadIt) {
  const auto cache = directory_ / "a/b";
  const auto salt = namespace_salt(cache);
  ASSERT_TRUE(salt.has_value());
  EXPECT_EQ(salt->size(), 64U);
  EXPECT_EQ(mode(cache), 0700);
  EXPECT_EQ(mode(cache / "salt"), 0600);
  EXPECT_EQ(*namespace_salt(cache), *salt);
  EXPECT_NE(*namespace_salt({}), *namespace_salt({})) << "of this process alone";
  EXPECT_NE(cache_namespace(*salt, "key", "user"), cache_namespace(*salt, "keyu", "ser"));
}

TEST_F(KeysTest, ADamagedSaltIsNoSalt) {
  for (const std::string& text :
       {std::string(), std::string("short"), std::string(64, 'x'), std::string(65, 'a')}) {
    std::ofstream(directory_ / "salt", std::ios::trunc) << text;
    const auto salt = namespace_salt(directory_);
    ASSERT_FALSE(salt.has_value()) << text;
    EXPECT_THAT(salt.error().message(), HasSubstr("salt: not 64 hexadecimal digits"));
  }
  std::filesystem::remove(directory_ / "salt");
  std::filesystem::create_directory(directory_ / "salt");
  EXPECT_FALSE(namespace_salt(directory_).has_value());
  std::ofstream(directory_ / "file") << "x";
  EXPECT_FALSE(namespace_salt(directory_ / "file").has_value());
  EXPECT_FALSE(namespace_salt(directory_ / "file/below").has_value());
}

}  // namespace
}  // namespace hadal::serve
