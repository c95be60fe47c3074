// Which kernels serve on this processor.
#include "kernels.h"

#include <sys/syscall.h>
#include <unistd.h>

namespace lorry {
namespace {

bool has_avx512_bf16() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bf16");
}

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// A process has to request tiles once: the operating system saves them only for those that did.
bool has_amx() {
  constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  __builtin_cpu_init();
  return has_avx512_bf16() && __builtin_cpu_supports("amx-tile") &&
         __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

// Best first.
const Kernels kAll[] = {
    {"AMX-BF16", has_amx, kLoraAmx, kNf4Amx},
    {"AVX512-BF16", has_avx512_bf16, kLoraAvx512, kNf4Avx512},
    {"AVX2", has_avx2, kLoraAvx2, kNf4Avx2},
};

const Kernels* first_of(std::string_view instructions) {
  for (const Kernels& each : kAll)
    if ((instructions.empty() || instructions == each.instructions) && each.run_here())
      return &each;
  return nullptr;
}

const Kernels*& chosen() {
  static const Kernels* choice = first_of("");
  return choice;
}

}  // namespace

const Kernels* kernels() { return chosen(); }

void use(std::string_view instructions) {
  const Kernels* wanted = first_of(instructions);
  chosen() = wanted ? wanted : first_of("");
}

}  // namespace lorry
