// Which kernels serve on this processor.
#include "kernels.h"

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

const Kernels kAvx512{"AVX512-BF16", has_avx512_bf16, kLoraAvx512, kNf4Avx512};
const Kernels kAvx2{"AVX2", has_avx2, kLoraAvx2, kNf4Avx2};

const Kernels* first_of(const Kernels* wished, const Kernels* other) {
  return wished->run_here() ? wished : other->run_here() ? other : nullptr;
}

const Kernels*& chosen() {
  static const Kernels* choice = first_of(&kAvx512, &kAvx2);
  return choice;
}

}  // namespace

const Kernels* kernels() { return chosen(); }

void use_avx2(bool wanted) {
  chosen() = wanted ? first_of(&kAvx2, &kAvx512) : first_of(&kAvx512, &kAvx2);
}

}  // namespace lorry
