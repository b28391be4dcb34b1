#include "model/model.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#include <fmt/format.h>

#include "base/buffer.h"
#include "base/check.h"
#include "model/mla.h"
#include "model/streamed_weights.h"
#include "tensor/codec.h"

namespace hadal {
namespace {

bool has_scale_name(std::string_view name) {
  return name.ends_with(".weight");
}

using Names = std::set<std::string, std::less<>>;

// "layers.3.attn.wq_a.weight" -> "attn.wq_a", "model.layers.3.mlp.gate.weight" -> "mlp.gate"; of the MTP
// blocks "mtp.attn.wq_a"; of all experts "ffn.experts.w1".
std::string name_in_layer(std::string_view name) {
  std::string out;
  while (!name.empty()) {
    const std::string_view part = name.substr(0, name.find('.'));
    name.remove_prefix(std::min(name.size(), part.size() + 1));
    const bool number = part.find_first_not_of("0123456789") == part.npos;
    if (number || part == "model" || part == "layers" || part == "weight") continue;
    if (!out.empty()) out += '.';
    out += part;
  }
  return out;
}

// Fills the slots of Weights from a checkpoint: large matrices stay where they are, vectors become float32.
class Binder {
 public:
  Binder(const Config& config, const Checkpoint& checkpoint, std::vector<Buffer<float>>& vectors,
         std::vector<Buffer<std::int32_t>>& tables, std::vector<Buffer<std::uint8_t>>& scales, Names& names)
      : config_(config),
        checkpoint_(checkpoint),
        vectors_(vectors),
        tables_(tables),
        scales_(scales),
        names_(names) {}

  void operator()(Linear& slot, const ParameterInfo& info) {
    const TensorRef* tensor = find(info);
    if (tensor == nullptr) return;
    slot.out = info.shape[0];
    slot.in = info.shape[1];
    slot.weight = tensor->data;
    slot.name = *names_.insert(name_in_layer(info.name)).first;
    switch (tensor->dtype) {
      case DType::f32:
        slot.format = Linear::Format::f32;
        break;
      case DType::f16:
        slot.format = Linear::Format::f16;
        break;
      case DType::bf16:
        slot.format = Linear::Format::bf16;
        break;
      case DType::f8_e4m3:
        slot.format = Linear::Format::fp8;
        break;
      case DType::i8:
        slot.format = Linear::Format::fp4;
        break;
      default:
        return wrong_dtype(info, *tensor, "F32, F16, BF16, F8_E4M3 or packed FP4 (I8)");
    }
    const Shape stored = slot.format == Linear::Format::fp4 ? Shape{slot.out, slot.in / 2} : info.shape;
    if (slot.format == Linear::Format::fp4 && slot.in % 32 != 0)
      return wrong_shape(info.name, *tensor, stored);
    if (tensor->shape != stored) return wrong_shape(info.name, *tensor, stored);
    if (!slot.quantised()) return;
    quantised_ = true;
    if (!has_scale_name(info.name)) return wrong_dtype(info, *tensor, "F32, F16 or BF16");

    const std::string name = scale_name(info.name);
    const TensorRef* scale = checkpoint_.find(name);
    used_.insert(name);
    if (scale == nullptr)
      return problem(fmt::format("'{}' is missing: '{}' is {} and needs its scales", name, info.name,
                                 to_string(tensor->dtype)));
    if (config_.v32 && scale->dtype == DType::f32) {
      const Shape blocks = scale_shape(slot.format, slot.out, slot.in);
      if (scale->shape != blocks) return wrong_shape(name, *scale, blocks);
      slot.scale = narrow_scales(name, *scale);
      return;
    }
    if (scale->dtype != DType::f8_e8m0) {
      return problem(fmt::format("'{}' is {}, expected F8_E8M0", name, to_string(scale->dtype)));
    }
    const Shape shape = scale_shape(slot.format, slot.out, slot.in);
    if (scale->shape != shape) return wrong_shape(name, *scale, shape);
    slot.scale = reinterpret_cast<const std::uint8_t*>(scale->data);
  }

  void operator()(Vector& slot, const ParameterInfo& info) {
    const TensorRef* tensor = find(info);
    if (tensor == nullptr) return;
    if (tensor->shape != info.shape) return wrong_shape(info.name, *tensor, info.shape);
    Buffer<float> values = Buffer<float>::uninitialised(static_cast<std::size_t>(tensor->elements()));
    const auto half = [&](std::size_t i) {
      std::uint16_t bits = 0;
      std::memcpy(&bits, tensor->data + 2 * i, 2);
      return bits;
    };
    switch (tensor->dtype) {
      case DType::f32:
        std::memcpy(values.data(), tensor->data, values.size() * 4);
        break;
      case DType::bf16:
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = bf16_to_f32(half(i));
        break;
      case DType::f16:
        for (std::size_t i = 0; i < values.size(); ++i) values[i] = f16_to_f32(half(i));
        break;
      default:
        return wrong_dtype(info, *tensor, "F32, BF16 or F16");
    }
    slot.values = values.span();
    vectors_.push_back(std::move(values));
  }

  void operator()(HashTable& slot, const ParameterInfo& info) {
    const TensorRef* tensor = find(info);
    if (tensor == nullptr) return;
    if (tensor->shape != info.shape) return wrong_shape(info.name, *tensor, info.shape);
    if (tensor->dtype != DType::i64 && tensor->dtype != DType::i32)
      return wrong_dtype(info, *tensor, "I64 or I32");
    Buffer<std::int32_t> ids =
        Buffer<std::int32_t>::uninitialised(static_cast<std::size_t>(tensor->elements()));
    for (std::size_t i = 0; i < ids.size(); ++i) {
      std::int64_t id = 0;
      if (tensor->dtype == DType::i64) {
        std::memcpy(&id, tensor->data + 8 * i, 8);
      } else {
        std::int32_t narrow = 0;
        std::memcpy(&narrow, tensor->data + 4 * i, 4);
        id = narrow;
      }
      if (id < 0 || id >= config_.n_routed_experts) {
        return problem(fmt::format("'{}' sends token {} to expert {}, but there are experts 0 to {}",
                                   info.name, i / static_cast<std::size_t>(config_.num_experts_per_tok), id,
                                   config_.n_routed_experts - 1));
      }
      ids[i] = static_cast<std::int32_t>(id);
    }
    slot.values = ids.span();
    tables_.push_back(std::move(ids));
  }

  // Every tensor of the checkpoint must have been asked for, except copies that some releases carry and, in
  // 0731 releases, the drafter.
  Status finish(const Notice& notice) {
    std::int64_t skipped = 0;
    for (const std::string_view name : checkpoint_.names()) {
      if (used_.contains(name)) continue;
      switch (classify_extra(config_, name)) {
        case ExtraTensor::drafter:
          ++skipped;
          break;
        case ExtraTensor::copy:
          break;
        case ExtraTensor::unknown:
          problem(fmt::format("'{}' is no tensor of this model", name));
          break;
      }
    }
    if (quantised_) check_input_blocks();
    if (problems_ > 0) {
      return fail(ErrorCode::corrupt, problems_ == 1 ? first_
                                                     : fmt::format("{} (and {} more such problem{})", first_,
                                                                   problems_ - 1, problems_ == 2 ? "" : "s"));
    }
    if (skipped > 0 && notice) {
      notice(config_.v32
                 ? fmt::format("the MTP layer of this release ({} tensors) is not used", skipped)
                 : fmt::format("the DSpark drafter of this release ({} tensors under mtp.*) is not used",
                               skipped));
    }
    return {};
  }

  bool quantised() const { return quantised_; }

 private:
  const TensorRef* find(const ParameterInfo& info) {
    const TensorRef* tensor = checkpoint_.find(info.name);
    used_.insert(info.name);
    // Only beside an unquantised weight are scales one tensor too many.
    const bool plain = tensor != nullptr && (tensor->dtype == DType::f32 || tensor->dtype == DType::f16 ||
                                             tensor->dtype == DType::bf16);
    if (!plain && has_scale_name(info.name)) used_.insert(scale_name(info.name));
    if (tensor == nullptr) problem(fmt::format("'{}' is missing", info.name));
    return tensor;
  }
  // V3.2's scales are powers of two in float32 (scale_fmt ue8m0), kept here as the bytes that they are.
  const std::uint8_t* narrow_scales(const std::string& name, const TensorRef& tensor) {
    auto bytes = Buffer<std::uint8_t>::uninitialised(static_cast<std::size_t>(tensor.elements()));
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, tensor.data + 4 * i, 4);
      bytes[i] = static_cast<std::uint8_t>(bits >> 23);
      if (bits << 9 != 0 || bits >> 31 != 0) {
        problem(fmt::format("'{}' has a scale that is no power of two, and hadal runs only scale_fmt ue8m0",
                            name));
        break;
      }
    }
    scales_.push_back(std::move(bytes));
    return scales_.back().data();
  }
  // A config without quantization_config does not promise this, whatever its tensors are.
  void check_input_blocks() {
    for (const auto& [name, value] :
         {std::pair<const char*, std::int64_t>{"hidden_size", config_.hidden_size},
          {"moe_intermediate_size", config_.moe_intermediate_size},
          {"q_lora_rank", config_.q_lora_rank},
          config_.v32
              ? std::pair<const char*, std::int64_t>{"num_attention_heads * v_head_dim",
                                                     config_.num_attention_heads * config_.v32->v_head_dim}
              : std::pair<const char*, std::int64_t>{"o_groups * o_lora_rank",
                                                     config_.o_groups * config_.o_lora_rank}}) {
      if (value % 128 == 0) continue;
      problem(
          fmt::format("there are FP8 or FP4 weights, but {} is {}, not a multiple of 128, the block in which "
                      "their inputs are quantised",
                      name, value));
    }
  }
  void wrong_shape(const std::string& name, const TensorRef& tensor, const Shape& expected) {
    problem(fmt::format("'{}' has shape {}, the config asks for {}", name, to_string(tensor.shape),
                        to_string(expected)));
  }
  void wrong_dtype(const ParameterInfo& info, const TensorRef& tensor, std::string_view expected) {
    problem(fmt::format("'{}' is {}, expected {}", info.name, to_string(tensor.dtype), expected));
  }
  void problem(std::string text) {
    if (problems_++ == 0) first_ = std::move(text);
  }

  const Config& config_;
  const Checkpoint& checkpoint_;
  std::vector<Buffer<float>>& vectors_;
  std::vector<Buffer<std::int32_t>>& tables_;
  std::vector<Buffer<std::uint8_t>>& scales_;
  Names& names_;
  Names used_;
  std::string first_;
  std::int64_t problems_ = 0;
  bool quantised_ = false;
};

}  // namespace

struct Model::Impl {
  Impl(Config c, Checkpoint files)
      : config(std::move(c)),
        checkpoint(std::move(files)),
        f32_layout(config, StateFormat::f32),
        compact_layout(config, StateFormat::compact),
        sliding(config.qk_rope_head_dim, config.rope_theta, std::nullopt),
        compress(config.qk_rope_head_dim, config.compress_rope_theta, config.rope_scaling) {}

  Config config;
  Checkpoint checkpoint;
  Weights weights;
  std::vector<Buffer<float>> vectors;
  std::vector<Buffer<std::int32_t>> tables;
  std::vector<Buffer<std::uint8_t>> scales;  // of V3.2
  std::vector<Buffer<std::byte>> absorbed;   // of V3.2, by layer
  Names names;                               // what Linear::name points into
  StateLayout f32_layout, compact_layout;
  RotaryFrequencies sliding, compress;
  bool quantised = false;
  std::optional<StreamedWeights> streamed;
};

Model::Model(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Result<Model> Model::bind(Config config, Checkpoint checkpoint, const Notice& notice,
                          const MemoryBudget& memory, const WeightCheck& check) {
  if (config.has_dspark) {  // the drafter in mtp.* is not the MTP block of the first releases
    config.compress_ratios.resize(static_cast<std::size_t>(config.num_hidden_layers));
    config.num_nextn_predict_layers = 0;
  }
  auto impl = std::make_unique<Impl>(std::move(config), std::move(checkpoint));
  Binder binder(impl->config, impl->checkpoint, impl->vectors, impl->tables, impl->scales, impl->names);
  for_each_parameter(impl->config, impl->weights, binder);
  HADAL_RETURN_IF_ERROR(binder.finish(notice));
  impl->quantised = binder.quantised();
  if (impl->config.v32) {
    if (memory.bytes > 0) {
      return fail(ErrorCode::unsupported,
                  "DeepSeek-V3.2 runs with all weights mapped or in memory: leave the memory budget out");
    }
    for (BlockWeights& layer : impl->weights.layers)
      impl->absorbed.push_back(absorb(*impl->config.v32, layer.mla));
  }
  if (memory.bytes > 0) {
    HADAL_ASSIGN_OR_RETURN(impl->streamed,
                           StreamedWeights::take(impl->config, impl->f32_layout, impl->checkpoint, memory,
                                                 notice, impl->weights));
  }
  HADAL_RETURN_IF_ERROR(check_weights(impl->config, impl->weights, impl->checkpoint, check));
  return Model(std::move(impl));
}

Result<Model> Model::load(const std::filesystem::path& directory, const Notice& notice,
                          const MemoryBudget& memory, const WeightCheck& check) {
  HADAL_ASSIGN_OR_RETURN(Config config, load_config(directory));
  HADAL_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::open(directory));
  auto model = bind(std::move(config), std::move(checkpoint), notice, memory, check);
  if (!model) return tl::unexpected(std::move(model).error().with_context(directory.string()));
  return model;
}

const Config& Model::config() const {
  return impl_->config;
}
const Weights& Model::weights() const {
  return impl_->weights;
}
const Checkpoint& Model::checkpoint() const {
  return impl_->checkpoint;
}
const StateLayout& Model::state_layout(StateFormat format) const {
  return format == StateFormat::f32 ? impl_->f32_layout : impl_->compact_layout;
}
const RotaryFrequencies& Model::sliding_frequencies() const {
  return impl_->sliding;
}
const RotaryFrequencies& Model::compress_frequencies() const {
  return impl_->compress;
}
void Model::for_each_linear(const std::function<void(const Linear&)>& visit) const {
  for_each_parameter(impl_->config, impl_->weights, [&](auto& slot, const ParameterInfo&) {
    if constexpr (std::is_same_v<std::remove_reference_t<decltype(slot)>, Linear>) visit(slot);
  });
}
bool Model::quantised() const {
  return impl_->quantised;
}

ExpertCache* Model::expert_cache() const {
  return impl_->streamed ? impl_->streamed->experts.get() : nullptr;
}
const MemoryPlan* Model::memory_plan() const {
  return impl_->streamed ? &impl_->streamed->plan : nullptr;
}

}  // namespace hadal
