// What an Engine owns; for the files of this room that run its model.
#pragma once

#include <memory>
#include <optional>
#include <span>

#include <hadal/engine.h>

#include "base/thread_pool.h"
#include "engine/sampler.h"
#include "model/model.h"
#include "model/transformer.h"

namespace hadal {

struct Engine::Impl {
  explicit Impl(const EngineOptions& given) : options(given), pool(given.threads, given.pin_threads) {}

  // Whether a sequence of `length` tokens can read these: what the forward would refuse, before it begins.
  Status check_tokens(std::int64_t length, std::span<const std::int32_t> tokens) const;

  EngineOptions options;
  ThreadPool pool;
  std::optional<Model> model;
  std::optional<Tokenizer> tokenizer;
  std::unique_ptr<Backend> backend;
  std::optional<Transformer> transformer;
  StateFormat state = StateFormat::f32;
  Sampler sampler;
  EngineInfo info;

  const StateLayout& state_layout() const { return model->state_layout(state); }
};

}  // namespace hadal
