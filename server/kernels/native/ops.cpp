// The kernels as PyTorch operators, whose schemas and meaning stand in server/kernels/operators.py.
#include <torch/library.h>

#include <string>

#include "lora_job.h"
#include "nf4_job.h"
#include "threads.h"

namespace lorry {
namespace {

void run(const LoraJob& job) {
  share(Phase{job.shrinks(), [&](int64_t i) { job.shrink(i); }},
        Phase{job.expands(), [&](int64_t i) { job.expand(i); }});
}

void lora_linear_(const Tensor& y, const Tensor& x, at::TensorList a, at::TensorList b,
                  const Tensor& plan, const Tensor& repaired, double scale, double bound,
                  bool add) {
  if (Plan(plan).segments() == 0) return;
  const Slots slots(a, b);
  run(LoraJob({y, x, slots, plan, repaired, scale, bound, add}));
}

void lora_layer_(const Tensor& y, const Tensor& x, const Tensor& joined, at::IntArrayRef columns,
                 int64_t ranks, const Tensor& plan, const Tensor& repaired, double bound) {
  if (Plan(plan).segments() == 0) return;
  check_rows(x, "x");
  const Slots slots(joined, columns, ranks, x.size(1));
  run(LoraJob({y, x, slots, plan, repaired, 1.0, bound, true}));
}

Tensor nf4_pack(const Tensor& codes, const Tensor& absmax, int64_t n, int64_t k) {
  TORCH_CHECK(n > 0 && n % kPanel == 0 && k > 0 && k % kBlock == 0,
              "n must be in 16s and k in 64s");
  TORCH_CHECK(codes.scalar_type() == at::kByte && codes.is_contiguous() && codes.numel() == n * k / 2);
  TORCH_CHECK(absmax.scalar_type() == at::kFloat && absmax.is_contiguous() &&
              absmax.numel() == n * k / kBlock);
  const Nf4Kernels& nf4 = checked_kernels().nf4;
  const Tensor packed = at::empty({n / kPanel, k / kBlock, kBlockBytes}, codes.options());
  share(Phase{n / kPanel, [&](int64_t panel) {
                nf4.pack(codes.const_data_ptr<uint8_t>(), absmax.const_data_ptr<float>(), k,
                         packed.mutable_data_ptr<uint8_t>(), panel, panel + 1);
              }});
  return packed;
}

Tensor nf4_linear(const Tensor& x, const Tensor& packed) {
  const Tensor y = Nf4Job::output(x, packed);
  if (x.size(0) == 0) return y;
  const Nf4Job job(y, x, packed);
  share(Phase{job.arranges(), [&](int64_t i) { job.arrange(i); }},
        Phase{job.multiplies(), [&](int64_t i) { job.multiply(i); }});
  return y;
}

Tensor nf4_lora_linear(const Tensor& x, const Tensor& packed, const Tensor& joined,
                       at::IntArrayRef columns, int64_t ranks, const Tensor& plan,
                       const Tensor& repaired, double bound) {
  if (Plan(plan).segments() == 0) return nf4_linear(x, packed);
  const Tensor y = Nf4Job::output(x, packed);
  const Slots slots(joined, columns, ranks, x.size(1));
  const LoraJob lora({y, x, slots, plan, repaired, 1.0, bound, true});
  const Nf4Job nf4(y, x, packed);
  share(Phase{nf4.arranges(), [&](int64_t i) { nf4.arrange(i); }},
        Phase{nf4.multiplies(), [&](int64_t i) { nf4.multiply(i); }},
        Phase{lora.shrinks(), [&](int64_t i) { lora.shrink(i); }},
        Phase{lora.expands(), [&](int64_t i) { lora.expand(i); }});
  return y;
}

// Digest of the sources: server/kernels/stamp.py looks for it before this library is loaded.
[[gnu::used]] const char kStamp[] = "lorry kernels " LORRY_STAMP;

std::string instructions() { return kernels() ? kernels()->instructions : ""; }
void use_instructions(std::string_view wanted) { use(wanted); }

}  // namespace
}  // namespace lorry

TORCH_LIBRARY_FRAGMENT(lorry, m) {
  m.def("instructions() -> str", &lorry::instructions);  // "": none of the kernels run here
  m.def("use_instructions(str wanted) -> ()", &lorry::use_instructions);  // for tests; "": the best
}

TORCH_LIBRARY_IMPL(lorry, CPU, m) {
  m.impl("lora_linear_", &lorry::lora_linear_);
  m.impl("lora_layer_", &lorry::lora_layer_);
  m.impl("nf4_pack", &lorry::nf4_pack);
  m.impl("nf4_linear", &lorry::nf4_linear);
  m.impl("nf4_lora_linear", &lorry::nf4_lora_linear);
}
