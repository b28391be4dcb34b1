// hadal train: a recipe to a model, with a run directory that a stopped run goes on from; its report; its
// export.
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <memory>
#include <string>
#include <thread>

#include <fmt/format.h>

#include "base/file_writer.h"
#include "cli/command.h"
#include "cli/engine_options.h"
#include "cli/progress.h"
#include "dist/communicator.h"
#include "train/export.h"
#include "train/report.h"
#include "train/trainer.h"

namespace hadal::cli {
namespace {

namespace fs = std::filesystem;

struct TrainArguments {
  std::string recipe, run;
  bool resume = false;
  int threads = 0;
  // report and export
  std::string out, format = "published";
  std::int64_t step = -1;
  bool force = false;
};

void add_threads(CLI::App& command, TrainArguments& arguments) {
  command.add_option("--threads", arguments.threads, "Threads; 0 for all. They never show in the result")
      ->envname("HADAL_THREADS")
      ->check(CLI::Range(0, 4096));
}

// mpirun ends a job of which a process is lost with SIGTERM, to which the others, waiting for that process,
// cannot answer at the end of a step. Half a second later, and before mpirun loses its patience, they say why
// they end.
void leave_waiting_ranks(int /*signal*/) {
  constexpr std::string_view kText =
      "hadal: another process of the run does not answer: it was lost, or is slow to stop; the last snapshot "
      "is kept, --resume goes on from there\n";
  [[maybe_unused]] const auto n = ::write(STDERR_FILENO, kText.data(), kText.size());
  std::_Exit(kFailed);
}
void stop_ranks(int /*signal*/) {
  std::raise(SIGINT);
  const itimerval soon{{0, 0}, {0, 500'000}};
  ::setitimer(ITIMER_REAL, &soon, nullptr);
}

Status train(const TrainArguments& arguments, Communicator& ranks) {
  const auto loaded = load_recipe(arguments.recipe);
  HADAL_RETURN_IF_ERROR(agree(ranks, loaded ? Status() : tl::unexpected(loaded.error())));
  const TrainingRecipe& recipe = *loaded;
  const int cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  ThreadPool pool(arguments.threads == 0 ? std::max(1, cores / ranks.local_size()) : arguments.threads);
  const bool speaks = ranks.rank() == 0;
  Progress bar;
  TrainerOptions options;
  options.run = arguments.run.empty() ? fs::path("runs") / recipe.name : fs::path(arguments.run);
  options.resume = arguments.resume;
  options.communicator = &ranks;
  const std::int64_t steps = recipe.steps;
  if (speaks) {
    options.notice = [&](std::string_view text) {
      bar.clear();
      notice(text);
    };
    options.on_step = [&](const StepMetrics& m) {
      if (m.validation) {
        bar.clear();
        fmt::print(stderr, "step {}: held out: ce {:.4f}, mtp {:.4f}\n", m.plan.step + 1, m.validation->ce,
                   m.validation->mtp);
      }
      bar.show(m.plan.step + 1, steps,
               fmt::format("ce {:.3f}  lr {:.2e}  {:.0f} tokens/s", m.losses.ce, m.plan.learning_rate,
                           static_cast<double>(m.plan.tokens()) / m.seconds));
    };
  }
  catch_interrupt();  // the first Ctrl-C ends the run behind the step, the second at once
  if (ranks.size() > 1) std::signal(SIGALRM, leave_waiting_ranks);
  std::signal(
      SIGTERM, ranks.size() > 1 ? stop_ranks : [](int) { std::raise(SIGINT); });
  options.stop = interrupted;
  const fs::path run = options.run;
  auto trainer = Trainer::create(recipe, std::move(options), pool);
  HADAL_RETURN_IF_ERROR(agree(ranks, trainer ? Status() : tl::unexpected(trainer.error())));
  if (speaks) {
    fmt::print(stderr, "{}: step {} of {}, {:.2f} GB{}\n", run.string(), trainer->step(), steps,
               static_cast<double>(trainer->memory()) * 1e-9,
               ranks.size() > 1 ? fmt::format(" in each of {} processes", ranks.size()) : "");
  }
  HADAL_RETURN_IF_ERROR(trainer->run());
  bar.clear();
  if (!speaks) return {};
  if (trainer->step() < steps) {
    fmt::print(stderr, "{}: stopped before step {}; --resume goes on from there\n", run.string(),
               trainer->step());
  } else {
    fmt::print(stderr, "{}: done; 'hadal train export {} OUT' makes a checkpoint of it\n", run.string(),
               run.string());
  }
  return {};
}

// All processes of a job end in the same way, and one says how.
int train(const TrainArguments& arguments) {
  const auto ranks = connect();
  if (!ranks) return report(ranks.error());
  const Status status = train(arguments, **ranks);
  std::signal(SIGTERM, SIG_DFL);
  std::signal(SIGALRM, SIG_DFL);
  if (status) return kDone;
  if ((*ranks)->rank() == 0) report(status.error());
  (void)agree(**ranks, status);  // mpirun ends them all with the first; let it be said before
  return kFailed;
}

Status write_report(const TrainArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const std::string html, training_report(arguments.run));
  const fs::path out =
      arguments.out.empty() ? fs::path(arguments.run) / "report.html" : fs::path(arguments.out);
  HADAL_RETURN_IF_ERROR(write_file(out, html));
  fmt::print(stderr, "{}\n", out.string());
  return {};
}

Status export_run(const TrainArguments& arguments) {
  HADAL_ASSIGN_OR_RETURN(const TrainedWeights trained, load_run(arguments.run, arguments.step));
  ThreadPool pool(arguments.threads);
  CheckpointOptions options;
  options.force = arguments.force;
  const StorageFormat format = arguments.format == "bf16"  ? StorageFormat::bf16
                               : arguments.format == "f32" ? StorageFormat::f32
                                                           : StorageFormat::published;
  HADAL_ASSIGN_OR_RETURN(const ExportSummary summary,
                         export_checkpoint(trained.recipe.config, trained.weights, arguments.out, format,
                                           trained.recipe.tokenizer, options, pool));
  fmt::print(stderr, "{}: step {}, {} tensors, {} bytes{}\n", arguments.out, trained.step,
             summary.checkpoint.tensors, summary.checkpoint.bytes,
             trained.recipe.tokenizer.empty() ? "; put a tokenizer.json beside them to use text" : "");
  if (summary.fp4_tiles > 0) {
    fmt::print(stderr, "{} of {} FP4 tiles (128x128) have scales too far apart for FP8 without loss\n",
               summary.fp4_tiles_beyond_fp8, summary.fp4_tiles);
  }
  return {};
}

}  // namespace

void register_train(CLI::App& app, Outcome& outcome) {
  CLI::App* const command = app.add_subcommand("train", "Train a model by a recipe");
  const auto arguments = std::make_shared<TrainArguments>();
  command->add_option("RECIPE", arguments->recipe, "recipes/NAME.json");
  command->add_option("--run", arguments->run, "The run's directory; by default runs/NAME")->type_name("DIR");
  command->add_flag("--resume", arguments->resume, "Go on from the run's last snapshot");
  add_threads(*command, *arguments);
  command->footer(
      "Ctrl-C finishes the step, takes a snapshot and ends; --resume goes on bit for bit.\n"
      "Examples:\n  hadal train recipes/nano.json\n  hadal train recipes/nano.json --resume\n"
      "  hadal train report runs/nano\n  hadal train export runs/nano models/nano --format published");

  CLI::App* const report_command =
      command->add_subcommand("report", "A page with the curves of a run (HTML)");
  report_command->add_option("RUN", arguments->run, "The run's directory")->required();
  report_command->add_option("-o,--out", arguments->out, "The file to write; by default RUN/report.html");
  report_command->footer("Example: hadal train report runs/nano");
  report_command->callback([arguments, &outcome] {
    const Status status = write_report(*arguments);
    outcome.exit_code = status ? kDone : report(status.error());
  });

  CLI::App* const export_command = command->add_subcommand("export", "A snapshot as a checkpoint");
  export_command->add_option("RUN", arguments->run, "The run's directory")->required();
  export_command->add_option("OUT", arguments->out, "The directory to write")->required();
  export_command->add_option("--format", arguments->format, "published (FP4, FP8 and BF16), bf16 or f32")
      ->check(CLI::IsMember({"published", "bf16", "f32"}))
      ->capture_default_str();
  export_command->add_option("--step", arguments->step, "Of the snapshot; by default the last one");
  export_command->add_flag("--force", arguments->force, "Replace a checkpoint that is already there");
  add_threads(*export_command, *arguments);
  export_command->footer("Example: hadal train export runs/nano models/nano --format published");
  export_command->callback([arguments, &outcome] {
    const Status status = export_run(*arguments);
    outcome.exit_code = status ? kDone : report(status.error());
  });

  command->callback([command, arguments, &outcome] {
    if (!command->get_subcommands().empty()) return;
    if (arguments->recipe.empty()) throw CLI::RequiredError("RECIPE");
    outcome.exit_code = train(*arguments);
  });
}

}  // namespace hadal::cli
