#include "train/run_directory.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "base/file_writer.h"
#include "base/mapped_file.h"

namespace hadal {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string to_json(const StepMetrics& m) {
  Json json = {{"step", m.plan.step},
               {"tokens", m.plan.tokens_before + m.plan.tokens()},
               {"stage", m.plan.stage},
               {"attention", to_string(m.plan.attention)},
               {"length", m.plan.length},
               {"sequences", m.plan.sequences},
               {"learning_rate", m.plan.learning_rate},
               {"loss", m.losses.total},
               {"ce", m.losses.ce},
               {"mtp", m.losses.mtp},
               {"balance", m.losses.balance},
               {"index_kl", m.losses.index_kl},
               {"gradient_norm", m.gradient_norm},
               {"load_max", m.load_max},
               {"load_min", m.load_min},
               {"mixing_rows", {m.mixing.least_row, m.mixing.most_row}},
               {"mixing_columns", {m.mixing.least_column, m.mixing.most_column}},
               {"tokens_per_s", static_cast<double>(m.plan.tokens()) / std::max(m.seconds, 1e-9)},
               {"model_s", m.model_seconds},
               {"optimizer_s", m.optimizer_seconds}};
  if (m.anticipated) json["anticipated"] = true;
  if (m.spike) json["spike"] = true;
  if (m.validation) json["validation"] = {{"ce", m.validation->ce}, {"mtp", m.validation->mtp}};
  return json.dump();
}

Result<RunLock> RunLock::take(const fs::path& run) {
  const std::string path = (run / "lock").string();
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return fail(ErrorCode::io, fmt::format("{}: cannot create", path));
  RunLock lock(fd);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0)
    return fail(ErrorCode::invalid_argument, fmt::format("{}: another process trains here", run.string()));
  return lock;
}

RunLock::RunLock(RunLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
RunLock& RunLock::operator=(RunLock&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}
RunLock::~RunLock() {
  if (fd_ >= 0) ::close(fd_);
}

Result<bool> find_run(const fs::path& run, const std::string& recipe, bool resume) {
  const fs::path file = run / "recipe.json";
  std::error_code error;
  if (!fs::exists(file, error)) return false;
  if (!resume) {
    return fail(ErrorCode::invalid_argument,
                fmt::format("{}: a run is there already; --resume continues it, --run DIR starts another",
                            run.string()));
  }
  HADAL_ASSIGN_OR_RETURN(const std::string old, read_file(file, std::size_t{1} << 20));
  if (old == recipe) return true;
  const Json changes = Json::diff(Json::parse(old, nullptr, false), Json::parse(recipe));
  const std::string where = changes.empty() ? std::string("/") : changes[0].value("path", "/");
  return fail(ErrorCode::invalid_argument,
              fmt::format("{}: the run was started with another recipe: {} differs; --run DIR starts another",
                          file.string(), where));
}

Result<RunLock> open_run(const std::string& recipe, const fs::path& run, bool there) {
  std::error_code error;
  fs::create_directories(run, error);
  if (error) {
    return fail(ErrorCode::io,
                fmt::format("{}: cannot create the directory: {}", run.string(), error.message()));
  }
  HADAL_ASSIGN_OR_RETURN(RunLock lock, RunLock::take(run));
  if (!there) HADAL_RETURN_IF_ERROR(write_file(run / "recipe.json", recipe));
  return lock;
}

Result<MetricsFile> MetricsFile::open(const fs::path& path, std::int64_t step) {
  std::string kept;
  std::ifstream old(path);
  for (std::string line; std::getline(old, line);) {
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
        json["step"].get<std::int64_t>() < step)
      kept += line + "\n";
  }
  old.close();
  HADAL_RETURN_IF_ERROR(write_file(path, kept));
  std::ofstream out(path, std::ios::app);
  if (!out) return fail(ErrorCode::io, fmt::format("{}: cannot open for writing", path.string()));
  return MetricsFile(path, std::move(out));
}

Status MetricsFile::write(const std::string& line) {
  out_ << line << std::endl;
  if (!out_) return fail(ErrorCode::io, fmt::format("{}: cannot write", path_.string()));
  return {};
}

}  // namespace hadal
