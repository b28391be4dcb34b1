// The options that every command with a model shares: -m, --threads, --numerics, --state, and how progress is
// told.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include <hadal/engine.h>

#include "base/memory_policy.h"

namespace hadal::cli {

// Adds -m, --threads, --pin, --numerics, --state, --backend, --isa and those of memory. HADAL_THREADS and
// HADAL_ISA stand in for what is not given.
void add_engine_options(CLI::App& command, EngineOptions& options);

// A line on stderr.
void notice(std::string_view text);

// --huge-pages and --numa, for commands that open no Engine; before threads are started.
Status apply_memory_options(const EngineOptions& options);

// Ctrl-C: the first one makes interrupted() true and is otherwise ignored, so that what runs can end cleanly;
// the second ends the process.
void catch_interrupt();
bool interrupted();
void clear_interrupt();

}  // namespace hadal::cli
