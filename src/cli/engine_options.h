// The options that every command with a model shares: -m, --threads, --numerics, --state, and how progress is
// told.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include <hadal/engine.h>

namespace hadal::cli {

// Adds -m, --threads, --pin, --numerics, --state, --backend and --isa. HADAL_THREADS and HADAL_ISA stand in
// for what is not given.
void add_engine_options(CLI::App& command, EngineOptions& options);

// A line on stderr.
void notice(std::string_view text);

// The highest resident memory of this process so far, in bytes; counts mapped weights that were touched.
std::int64_t peak_memory_bytes();

// Ctrl-C: the first one makes interrupted() true and is otherwise ignored, so that what runs can end cleanly;
// the second ends the process.
void catch_interrupt();
bool interrupted();
void clear_interrupt();

}  // namespace hadal::cli
