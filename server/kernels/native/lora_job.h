// One linear layer's LoRA for a whole batch, cut into pieces that threads share.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "operands.h"

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
  at::TensorList a, b;
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
    shrunk_ = at::empty({slices(), plan_.count(), max_rank()}, of.x.options());
  }

  // Pieces are in the order of the plan's segments, which is that of the batch, as x and y were
  // written: first rows by the first thread.
  int64_t shrinks() const { return plan_.segments() * shrinks_of_segment(); }
  int64_t expands() const { return plan_.segments() * stretches_.size(); }

  void shrink(int64_t i) const {
    const int32_t* segment = plan_.segment(i / shrinks_of_segment());
    const int slice = i % shrinks_of_segment() / rank_steps(), rank = i % rank_steps() * kRanks;
    const int ranks = std::min(kRanks, segment[1] - rank);
    if (ranks <= 0) return;
    lora_.shrink(read(of_.x), of_.x.stride(0), rows_of(segment), segment[3],
                 a_of(slice, segment[0]) + rank * width(), width(), ranks, of_.scale,
                 shrunk_at(slice, segment) + rank, max_rank());
  }

  // After all of shrink.
  void expand(int64_t i) const {
    const int32_t* segment = plan_.segment(i / stretches_.size());
    const Stretch& to = stretches_[i % stretches_.size()];
    const int64_t count = lora_.expand(
        {write(of_.y) + to.start, of_.y.stride(0), rows_of(segment), segment[3],
         shrunk_at(to.slice, segment), max_rank(), b_of(to.slice, segment[0]), max_rank(),
         segment[1], float(of_.bound), of_.add},
        to.first, to.last);
    if (count) std::atomic_ref<int64_t>(repaired_[segment[0]]).fetch_add(count);
  }

 private:
  // Columns first to last of a slice, which starts at y's column `start`.
  struct Stretch {
    int slice;
    int64_t start, first, last;
  };
  static constexpr int kRanks = 16, kColumns = 512;  // of one piece

  int slices() const { return of_.a.size(); }
  int64_t slots() const { return of_.a[0].size(0); }
  int64_t max_rank() const { return of_.a[0].size(2); }
  int64_t width() const { return of_.a[0].size(3); }
  int64_t rank_steps() const { return (max_rank() + kRanks - 1) / kRanks; }
  int64_t shrinks_of_segment() const { return slices() * rank_steps(); }

  const int32_t* rows_of(const int32_t* segment) const { return plan_.rows() + segment[2]; }
  const bf16* a_of(int slice, int64_t slot) const {
    return read(of_.a[slice]) + slot * max_rank() * width();
  }
  const bf16* b_of(int slice, int64_t slot) const {
    return read(of_.b[slice]) + slot * of_.b[slice].size(2) * max_rank();
  }
  bf16* shrunk_at(int slice, const int32_t* segment) const {
    return write(shrunk_) + (slice * shrunk_.size(1) + segment[2]) * max_rank();
  }

  void check() {
    check_rows(of_.y, "y");
    check_rows(of_.x, "x");
    TORCH_CHECK(of_.a.size() == of_.b.size() && !of_.a.empty());
    int64_t start = 0;
    for (int i = 0; i < slices(); ++i) {
      const Tensor &a = of_.a[i], &b = of_.b[i];
      check_slots(a, "a");
      check_slots(b, "b");
      TORCH_CHECK(a.size(2) == max_rank() && b.size(3) == max_rank() && a.size(3) == width());
      TORCH_CHECK(a.size(0) == slots() && b.size(0) == slots());
      const int64_t columns = b.size(2);
      for (int64_t first = 0; first < columns; first += kColumns)
        stretches_.push_back({i, start, first, std::min(first + kColumns, columns)});
      start += columns;
    }
    TORCH_CHECK(of_.x.size(1) == width() && max_rank() % kRankStep == 0);
    TORCH_CHECK(start <= of_.y.size(1), "B has more columns than y");
    TORCH_CHECK(of_.repaired.is_contiguous() && of_.repaired.numel() >= slots());
  }

  void check_plan() const {
    for (int i = 0; i < plan_.segments(); ++i) {
      const int32_t slot = plan_.segment(i)[0], rank = plan_.segment(i)[1];
      TORCH_CHECK(0 <= slot && slot < slots(), "no such slot");
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
  Tensor shrunk_;  // (slices, rows, ranks)
  std::vector<Stretch> stretches_;
};

}  // namespace lorry
