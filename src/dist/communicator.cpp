#include "dist/communicator.h"

#include <algorithm>
#include <numeric>
#include <string>

namespace hadal {

Status agree(Communicator& communicator, const Status& mine) {
  std::string text;
  if (!mine) {
    text.push_back(static_cast<char>(mine.error().code()));
    text += mine.error().message();
  }
  for (const std::vector<char>& theirs : communicator.gather(std::span<const char>(text))) {
    if (!theirs.empty())
      return fail(static_cast<ErrorCode>(theirs[0]), std::string(theirs.begin() + 1, theirs.end()));
  }
  return {};
}

std::vector<int> deal_out(std::span<const double> costs, int ranks, std::vector<double> load) {
  std::vector<std::size_t> order(costs.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });
  load.resize(static_cast<std::size_t>(ranks));
  std::vector<int> owners(costs.size());
  for (const std::size_t i : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += costs[i];
    owners[i] = static_cast<int>(least - load.begin());
  }
  return owners;
}

}  // namespace hadal
