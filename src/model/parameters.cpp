#include "model/parameters.h"

#include "base/check.h"

namespace hadal {

std::string_view to_string(Role role) {
  switch (role) {
    case Role::embedding:
      return "embedding";
    case Role::head:
      return "head";
    case Role::norm:
      return "norm";
    case Role::attention_projection:
      return "attention_projection";
    case Role::mtp_projection:
      return "mtp_projection";
    case Role::expert:
      return "expert";
    case Role::shared_expert:
      return "shared_expert";
    case Role::compressor_projection:
      return "compressor_projection";
    case Role::index_weights:
      return "index_weights";
    case Role::router:
      return "router";
    case Role::router_bias:
      return "router_bias";
    case Role::hash_table:
      return "hash_table";
    case Role::position_bias:
      return "position_bias";
    case Role::attention_sink:
      return "attention_sink";
    case Role::hc_mixer:
      return "hc_mixer";
    case Role::hc_base:
      return "hc_base";
    case Role::hc_scale:
      return "hc_scale";
  }
  return "unknown";
}

bool is_indexer(const ParameterInfo& info) {
  return info.name.find(".attn.indexer.") != std::string::npos;
}

std::string scale_name(std::string_view weight_name) {
  constexpr std::string_view kSuffix = ".weight";
  HADAL_CHECK(weight_name.ends_with(kSuffix));
  if (weight_name.starts_with("model.")) return std::string(weight_name) + "_scale_inv";
  return std::string(weight_name.substr(0, weight_name.size() - kSuffix.size())) + ".scale";
}

Shape scale_shape(Linear::Format format, std::int64_t out, std::int64_t in) {
  if (format == Linear::Format::fp4) return {out, in / 32};
  return {(out + 127) / 128, (in + 127) / 128};
}

std::vector<StoredTensor> stored_tensors(const Config& config, const ParameterInfo& info,
                                         StorageFormat format) {
  const auto plain = [&](DType published) -> std::vector<StoredTensor> {
    const DType dtype = info.role == Role::hash_table        ? DType::i64
                        : format == StorageFormat::published ? published
                        : format == StorageFormat::f32       ? DType::f32
                                                             : DType::bf16;
    return {{info.name, dtype, info.shape}};
  };
  const auto linear = [&](Linear::Format published) -> std::vector<StoredTensor> {
    if (format != StorageFormat::published) return plain(DType::bf16);
    const std::int64_t out = info.shape[0], in = info.shape[1];
    const DType scale = config.v32 ? DType::f32 : DType::f8_e8m0;  // V3.2: powers of two in float32
    switch (published) {
      case Linear::Format::f32:
        return plain(DType::f32);
      case Linear::Format::f16:
        return plain(DType::f16);
      case Linear::Format::bf16:
        return plain(DType::bf16);
      case Linear::Format::fp8:
        return {{info.name, DType::f8_e4m3, {out, in}},
                {scale_name(info.name), scale, scale_shape(published, out, in)}};
      case Linear::Format::fp4:
        return {{info.name, DType::i8, {out, in / 2}},
                {scale_name(info.name), DType::f8_e8m0, scale_shape(published, out, in)}};
    }
    return {};
  };
  switch (info.role) {
    case Role::expert:
      return linear(config.expert_format);
    case Role::shared_expert:
    case Role::attention_projection:
    case Role::mtp_projection:
      return linear(config.dense_format);
    case Role::embedding:
    case Role::head:
    case Role::norm:
    case Role::compressor_projection:
    case Role::index_weights:
    case Role::router:
      return plain(DType::bf16);
    case Role::hash_table:
      return plain(DType::i64);
    case Role::router_bias:
    case Role::position_bias:
    case Role::attention_sink:
    case Role::hc_mixer:
    case Role::hc_base:
    case Role::hc_scale:
      return plain(DType::f32);
  }
  return {};
}

ExtraTensor classify_extra(const Config& config, std::string_view name) {
  if (config.v32) {  // the MTP layer lies behind the last one
    const std::string mtp = "model.layers." + std::to_string(config.num_hidden_layers) + ".";
    return name.starts_with(mtp) ? ExtraTensor::drafter : ExtraTensor::unknown;
  }
  if (!name.starts_with("mtp.")) return ExtraTensor::unknown;
  if (config.has_dspark) return ExtraTensor::drafter;
  // As published (emb.tok_emb) and as some converters rename it.
  const bool copy =
      name == "mtp.0.emb.tok_emb.weight" || name == "mtp.0.embed.weight" || name == "mtp.0.head.weight";
  return copy ? ExtraTensor::copy : ExtraTensor::unknown;
}

}  // namespace hadal
