// The planner against what ran: operations as the ops count them and cache bytes as allocated, within 1 %.
#include <map>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "base/mapped_file.h"
#include "model/init.h"
#include "model/transformer.h"
#include "plan/host.h"

namespace hadal {
namespace {

using Json = nlohmann::json;

// Rows of the published widths, everything else small.
Config small_flash() {
  Json json = Json::parse(config_to_json(*preset_config("flash")));
  json.update({{"hidden_size", 256},
               {"num_hidden_layers", 4},
               {"num_nextn_predict_layers", 0},
               {"compress_ratios", {0, 128, 4, 4}},
               {"num_attention_heads", 8},
               {"q_lora_rank", 128},
               {"o_groups", 2},
               {"o_lora_rank", 64},
               {"n_routed_experts", 16},
               {"moe_intermediate_size", 128},
               {"num_hash_layers", 0},
               {"index_n_heads", 8},
               {"index_topk", 32},
               {"vocab_size", 256}});
  return *parse_config(json.dump());
}
Config small_v32() {
  Json json =
      Json::parse(read_file(std::filesystem::path(HADAL_TEST_DATA) / "v32" / "config.json").value_or(""));
  json["quantization_config"] = {{"quant_method", "fp8"}};
  return *parse_config(json.dump());
}

class Counted : public testing::TestWithParam<bool> {};

TEST_P(Counted, OperationsAndCacheAreThePlanners) {
  const Config config = GetParam() ? small_v32() : small_flash();
  ThreadPool pool(2);
  Buffer<std::byte> image = *init_checkpoint_bytes(config, 1, StorageFormat::published, pool);
  const Model model = *Model::bind(config, *Checkpoint::from_bytes(std::move(image), "small"));
  const auto backend = *make_backend("cpu", "", pool);
  Transformer transformer(model, *backend, Numerics::official);
  const CostModel planned(config);
  for (const auto& [context, tokens] : {std::pair{2047, 1}, std::pair{2000, 48}}) {
    SequenceState state(model.state_layout(StateFormat::compact));
    state.fill_synthetic(context, 1);
    const std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens), 7);
    Profile profile;
    backend->set_profile(&profile);
    const BatchItem item{&state, ids, BatchItem::Logits::all};
    ASSERT_TRUE(transformer.forward({&item, 1}).has_value());
    backend->set_profile(nullptr);
    std::map<OpClass, double> counted;
    for (const Profile::Entry& entry : profile.entries()) {
      const auto op = class_of(entry.work);
      if (op) counted[*op] += entry.work.flops;
      EXPECT_TRUE(op || entry.work.flops == 0) << entry.work.op;
    }
    TokenCost cost = planned(RowBytes::published(config), {context, 1, tokens, tokens});
    cost[OpClass::experts].flops += cost[OpClass::shared].flops;  // one op
    cost[OpClass::shared].flops = 0;
    for (std::size_t i = 0; i < kOpClasses; ++i) {
      const double plan = tokens * cost.classes[i].flops, ran = counted[static_cast<OpClass>(i)];
      EXPECT_NEAR(ran, plan, 0.01 * plan) << to_string(static_cast<OpClass>(i)) << " at " << context;
    }
  }
  // Rows as allocated; what else a state holds has one size whatever its length.
  SequenceState state(model.state_layout(StateFormat::compact));
  const double empty = static_cast<double>(state.resident_bytes());
  state.fill_synthetic(65536, 1);
  const double rows = static_cast<double>(state.resident_bytes()) - empty;
  const double plan = 65536 * cache_cost(config).bytes_per_token;
  EXPECT_NEAR(rows, plan, 0.01 * plan);
}

std::string name_of(const testing::TestParamInfo<bool>& model) {
  return model.param ? "V32" : "V4";
}
INSTANTIATE_TEST_SUITE_P(Models, Counted, testing::Values(false, true), name_of);

}  // namespace
}  // namespace hadal
