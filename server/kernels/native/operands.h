// Checks the operands of operators: a tensor of another kind or shape is an error, never a read
// beyond its end.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace lorry {

using at::Tensor;

inline const bf16* read(const Tensor& t) { return static_cast<const bf16*>(t.const_data_ptr()); }
inline bf16* write(const Tensor& t) { return static_cast<bf16*>(t.mutable_data_ptr()); }

inline const Kernels& checked_kernels() {
  const Kernels* all = kernels();
  TORCH_CHECK(all, "no kernels for this processor");
  return *all;
}

inline void check_rows(const Tensor& t, const char* name) {
  TORCH_CHECK(t.scalar_type() == at::kBFloat16 && t.dim() == 2 && t.stride(1) == 1, name,
              " must be bfloat16 rows");
}

}  // namespace lorry
