#include "ops/cpu/kernels.h"

#include <string>

#include <fmt/format.h>

namespace hadal::cpu {

Result<const Kernels*> choose_kernels(std::string_view isa) {
#if defined(__x86_64__)
  struct Set {
    std::string_view name;
    bool (*supported)();
    const Kernels& (*kernels)();
  };
  constexpr Set kSets[] = {{"avx512bf16", avx512bf16::supported, avx512bf16::kernels},
                           {"avx512vnni", avx512vnni::supported, avx512vnni::kernels},
                           {"avx512", avx512::supported, avx512::kernels},
                           {"avx2vnni", avx2vnni::supported, avx2vnni::kernels},
                           {"avx2", avx2::supported, avx2::kernels}};
  std::string available;
  for (const Set& set : kSets) {
    if (!set.supported()) continue;
    if (isa.empty() || isa == set.name) return &set.kernels();
    available += std::string(set.name) + ", ";
  }
  available += "scalar";
#elif defined(__aarch64__)
  if ((isa.empty() || isa == "neon_dotprod") && neon_dotprod::supported()) return &neon_dotprod::kernels();
  if (isa.empty() || isa == "neon") return &neon::kernels();
  const std::string available =
      std::string(neon_dotprod::supported() ? "neon_dotprod, " : "") + "neon, scalar";
#else
  const std::string available = "scalar";
#endif
  if (isa.empty() || isa == "scalar") return &scalar::kernels();
  return fail(
      ErrorCode::unsupported,
      fmt::format("instruction set '{}' (HADAL_ISA): this machine and build have {}", isa, available));
}

}  // namespace hadal::cpu
