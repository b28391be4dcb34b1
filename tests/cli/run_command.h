// Runs the hadal binary as a user does, and says what came back.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>

namespace hadal {

// A directory of its own for a test, removed with it.
class TempDirectory {
 public:
  TempDirectory() {
    std::string path = (std::filesystem::temp_directory_path() / "hadal-test-XXXXXX").string();
    if (::mkdtemp(path.data()) == nullptr) ADD_FAILURE() << "cannot make " << path;
    path_ = path;
  }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;
  ~TempDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  // Writes a file and returns its path.
  std::string file(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }
  std::string path() const { return path_.string(); }

 private:
  std::filesystem::path path_;
};

struct CommandResult {
  int exit_code;
  std::string out;
  std::string err;
};

// `arguments` as a shell reads them.
inline CommandResult run_command(const std::string& arguments, const std::string& input = "") {
  const TempDirectory directory;
  const auto read = [&](const std::string& name) {
    std::ostringstream text;
    text << std::ifstream(directory.path() + "/" + name, std::ios::binary).rdbuf();
    return text.str();
  };
  directory.file("in", input);
  const std::string command =
      fmt::format("'{0}' {1} <'{2}/in' >'{2}/out' 2>'{2}/err'", HADAL_BINARY, arguments, directory.path());
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read("out"), read("err")};
}

}  // namespace hadal
