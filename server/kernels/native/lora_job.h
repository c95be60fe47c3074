// One linear layer's LoRA for a whole batch, cut into pieces that threads share.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "slots.h"

namespace lorry {

// See server/kernels/plan.py. It is whole: its segments follow each other and end within it.
class Plan {
 public:
  explicit Plan(const Tensor& plan) : data_(plan.const_data_ptr<int32_t>()) {
    const int64_t size = plan.numel();
    bool fits = plan.is_contiguous() && size >= 2 && data_[0] >= 0 &&
                2 + 4 * int64_t(data_[0]) <= data_[1] && data_[1] <= size;
    for (int i = 0; fits && i < segments(); ++i) {
      fits = segment(i)[2] == rows_ && segment(i)[3] >= 0;
      rows_ += segment(i)[3];
    }
    TORCH_CHECK(fits && (rows_ == 0 || rows_ <= size - data_[1]), "the plan is not whole");
  }
  int segments() const { return data_[0]; }
  const int32_t* segment(int i) const { return data_ + 2 + 4 * i; }  // slot, rank, first row, rows
  const int32_t* rows() const { return data_ + data_[1]; }
  int64_t count() const { return rows_; }  // of all rows

 private:
  const int32_t* const data_;
  int64_t rows_ = 0;
};

struct LoraOperands {
  const Tensor &y, &x;
  const Slots& slots;
  const Tensor &plan, &repaired;
  double scale, bound;
  bool add;
};

class LoraJob {
 public:
  explicit LoraJob(const LoraOperands& of)
      : of_(of),
        plan_(of.plan),
        repaired_(of.repaired.mutable_data_ptr<int64_t>()),
        lora_(checked_kernels().lora) {
    check();
    check_plan();
    shrunk_ = at::empty({parts(), plan_.count(), max_rank()}, of.x.options());
  }

  // Pieces are in the order of the plan's segments, which is that of the batch, as x and y were
  // written: first rows by the first thread.
  int64_t shrinks() const { return plan_.segments() * shrinks_of_segment(); }
  int64_t expands() const { return plan_.segments() * stretches_.size(); }

  void shrink(int64_t i) const {
    const int32_t* segment = plan_.segment(i / shrinks_of_segment());
    const int part = i % shrinks_of_segment() / rank_steps(), rank = i % rank_steps() * kRanks;
    const int ranks = std::min(kRanks, segment[1] - rank);
    if (ranks <= 0) return;
    lora_.shrink(read(of_.x), of_.x.stride(0), rows_of(segment), segment[3],
                 a_of(part, segment[0]) + rank * width(), width(), ranks, of_.scale,
                 shrunk_at(part, segment) + rank, max_rank());
  }

  // After all of shrink.
  void expand(int64_t i) const {
    const int32_t* segment = plan_.segment(i / stretches_.size());
    const Stretch& to = stretches_[i % stretches_.size()];
    const int64_t count = lora_.expand(
        {write(of_.y) + to.start, of_.y.stride(0), rows_of(segment), segment[3],
         shrunk_at(to.part, segment), max_rank(), b_of(to.part, segment[0]), max_rank(),
         segment[1], float(of_.bound), of_.add},
        to.first, to.last);
    if (count) std::atomic_ref<int64_t>(repaired_[segment[0]]).fetch_add(count);
  }

 private:
  // Columns first to last of a part, which starts at y's column `start`.
  struct Stretch {
    int part;
    int64_t start, first, last;
  };
  static constexpr int kRanks = 16, kColumns = 512;  // of one piece

  int64_t max_rank() const { return of_.slots.ranks(); }
  int64_t width() const { return of_.slots.width(); }
  int64_t parts() const { return of_.slots.parts().size(); }
  int64_t rank_steps() const { return (max_rank() + kRanks - 1) / kRanks; }
  int64_t shrinks_of_segment() const { return parts() * rank_steps(); }

  const int32_t* rows_of(const int32_t* segment) const { return plan_.rows() + segment[2]; }
  const bf16* a_of(int part, int64_t slot) const {
    return of_.slots.parts()[part].a + slot * of_.slots.parts()[part].a_stride;
  }
  const bf16* b_of(int part, int64_t slot) const {
    return of_.slots.parts()[part].b + slot * of_.slots.parts()[part].b_stride;
  }
  bf16* shrunk_at(int part, const int32_t* segment) const {
    return write(shrunk_) + (part * shrunk_.size(1) + segment[2]) * max_rank();
  }

  void check() {
    check_rows(of_.y, "y");
    check_rows(of_.x, "x");
    int64_t start = 0;
    for (int i = 0; i < parts(); ++i) {
      const int64_t columns = of_.slots.parts()[i].columns;
      TORCH_CHECK(columns <= of_.y.size(1) - start, "B has more columns than y");
      for (int64_t first = 0; first < columns; first += kColumns)
        stretches_.push_back({i, start, first, std::min(first + kColumns, columns)});
      start += columns;
    }
    TORCH_CHECK(of_.x.size(1) == width(), "A has not as many inputs as x");
    TORCH_CHECK(of_.repaired.is_contiguous() && of_.repaired.numel() >= of_.slots.count());
  }

  void check_plan() const {
    for (int i = 0; i < plan_.segments(); ++i) {
      const int32_t slot = plan_.segment(i)[0], rank = plan_.segment(i)[1];
      TORCH_CHECK(0 <= slot && slot < of_.slots.count(), "no such slot");
      TORCH_CHECK(0 <= rank && rank <= max_rank() && rank % kRankStep == 0, "no such rank");
    }
    if (plan_.count() == 0) return;
    const auto [least, most] = std::minmax_element(plan_.rows(), plan_.rows() + plan_.count());
    TORCH_CHECK(0 <= *least && *most < std::min(of_.x.size(0), of_.y.size(0)),
                "fewer rows than the batch has tokens");
  }

  const LoraOperands of_;
  const Plan plan_;
  int64_t* const repaired_;
  const LoraKernels& lora_;
  Tensor shrunk_;  // (parts, rows, ranks)
  std::vector<Stretch> stretches_;
};

}  // namespace lorry
