// The kernels as PyTorch operators: checks, work shared between threads. The operators' schemas
// and what they mean stand in server/kernels/operators.py.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

namespace lorry {
namespace {

using at::Tensor;

// Every thread has its own stretch of the pieces, and helps others when it is done: an equal share
// each would wait for the thread whose core a neighbour uses, and pieces handed out in turn would
// make a core fetch what another one has in its cache.
class Share {
 public:
  Share(int64_t pieces, int64_t threads) : pieces_(pieces), next_(threads) {
    for (int64_t t = 0; t < threads; ++t) next_[t] = start_of(t);
  }

  // What thread `self` does of it; others may still be at theirs.
  template <typename Work>
  void take(int64_t self, const Work& work) {
    const int64_t threads = next_.size();
    int64_t taken = 0;
    try {
      for (int64_t i = 0; i < threads; ++i) {
        const int64_t t = (self + i) % threads, end = start_of(t + 1);
        for (int64_t piece = next_[t]++; piece < end; piece = next_[t]++, ++taken) work(piece);
      }
    } catch (...) {  // out of memory: the operator fails as a whole, so let nobody wait for this
      done_.fetch_add(pieces_);
      throw;
    }
    done_.fetch_add(taken, std::memory_order_release);
  }

  // Until all pieces are done. Whoever has taken one is at it, so this ends.
  void wait() const {
    for (int tries = 0; done_.load(std::memory_order_acquire) < pieces_; ++tries)
      if (tries < kSpins) __builtin_ia32_pause();
      else std::this_thread::yield();
  }

 private:
  static constexpr int kSpins = 1000;
  int64_t start_of(int64_t thread) const { return thread * pieces_ / (int64_t)next_.size(); }

  const int64_t pieces_;
  std::vector<std::atomic<int64_t>> next_;
  std::atomic<int64_t> done_ = 0;
};

template <typename Work>
void share(int64_t pieces, const Work& work) {
  if (pieces <= 0) return;
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), pieces);
  Share all(pieces, threads);
  at::parallel_for(0, threads, 1, [&](int64_t self, int64_t) { all.take(self, work); });
}

// `second` begins when all of `first` is done; to wake the threads once for both is quicker.
template <typename First, typename Second>
void share(int64_t firsts, const First& first, int64_t seconds, const Second& second) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), std::max(firsts, seconds));
  if (threads <= 0) return;
  Share before(firsts, threads), after(seconds, threads);
  at::parallel_for(0, threads, 1, [&](int64_t self, int64_t) {
    before.take(self, first);
    before.wait();
    after.take(self, second);
  });
}

const bf16* read(const Tensor& t) { return static_cast<const bf16*>(t.const_data_ptr()); }
bf16* write(const Tensor& t) { return static_cast<bf16*>(t.mutable_data_ptr()); }

const Kernels& checked_kernels() {
  const Kernels* all = kernels();
  TORCH_CHECK(all, "no kernels for this processor");
  return *all;
}

void check_rows(const Tensor& t, const char* name) {
  TORCH_CHECK(t.scalar_type() == at::kBFloat16 && t.dim() == 2 && t.stride(1) == 1, name,
              " must be bfloat16 rows");
}

void check_slots(const Tensor& t, const char* name) {
  TORCH_CHECK(t.scalar_type() == at::kBFloat16 && t.dim() == 4 && t.is_contiguous(), name,
              " must be contiguous bfloat16 (slots, 1, rows, columns)");
}

struct Piece {
  const int32_t* segment;  // slot, rank, first row, rows
  int slice, row, rows, rank, ranks;
  int64_t column, columns;
};

// See server/kernels/plan.py.
struct Plan {
  const int32_t* data;
  int segments() const { return data[0]; }
  const int32_t* segment(int i) const { return data + 2 + 4 * i; }
  const int32_t* rows() const { return data + data[1]; }
};

constexpr int kRows = 96, kRanks = 16, kColumns = 512;  // of one piece

void lora_linear_(const Tensor& y, const Tensor& x, at::TensorList a, at::TensorList b,
                  const Tensor& plan_tensor, const Tensor& repaired, double scale, double bound,
                  bool add) {
  const Plan plan{plan_tensor.const_data_ptr<int32_t>()};
  if (plan.segments() == 0) return;
  const LoraKernels& lora = checked_kernels().lora;
  check_rows(y, "y");
  check_rows(x, "x");
  TORCH_CHECK(a.size() == b.size() && !a.empty());
  const int slices = a.size(), max_rank = a[0].size(2);
  const int64_t width = a[0].size(3);
  int64_t last_row = 0, shrunk_rows = 0;
  for (int i = 0; i < plan.segments(); ++i) {
    const int32_t* s = plan.segment(i);
    shrunk_rows += s[3];
    for (int r = 0; r < s[3]; ++r) last_row = std::max<int64_t>(last_row, plan.rows()[s[2] + r]);
  }
  TORCH_CHECK(x.size(1) == width && max_rank % kRankStep == 0);
  TORCH_CHECK(last_row < x.size(0) && last_row < y.size(0), "fewer rows than the batch has tokens");
  std::vector<int64_t> starts(slices + 1, 0);
  for (int i = 0; i < slices; ++i) {
    check_slots(a[i], "a");
    check_slots(b[i], "b");
    TORCH_CHECK(a[i].size(2) == max_rank && b[i].size(3) == max_rank && a[i].size(3) == width);
    starts[i + 1] = starts[i] + b[i].size(2);
  }
  TORCH_CHECK(starts[slices] <= y.size(1), "B has more columns than y");

  const Tensor shrunk = at::empty({slices, shrunk_rows, max_rank}, x.options());
  const auto shrunk_at = [&](int slice, int row) {
    return write(shrunk) + (slice * shrunk_rows + row) * max_rank;
  };
  thread_local std::vector<Piece> shrinks, expands;
  // In the order of the batch, which is how x and y were written: first rows by the first thread.
  const auto by_rows = [&](const Piece& p) { return plan.rows()[p.segment[2] + p.row]; };
  const auto fill = [&](std::vector<Piece>& pieces, auto piece) {
    pieces.clear();
    for (int i = 0; i < plan.segments(); ++i)
      for (int row = 0, count = plan.segment(i)[3]; row < count; row += kRows)
        for (int slice = 0; slice < slices; ++slice)
          piece(plan.segment(i), slice, row, std::min(kRows, count - row));
    std::ranges::stable_sort(pieces, {}, by_rows);
  };

  fill(shrinks, [&](const int32_t* segment, int slice, int row, int rows) {
    for (int rank = 0; rank < segment[1]; rank += kRanks)
      shrinks.push_back(
          {segment, slice, row, rows, rank, std::min(kRanks, segment[1] - rank), 0, 0});
  });
  fill(expands, [&](const int32_t* segment, int slice, int row, int rows) {
    const int64_t columns = b[slice].size(2);
    for (int64_t column = 0; column < columns; column += kColumns)
      expands.push_back({segment, slice, row, rows, 0, 0, column,
                         std::min<int64_t>(kColumns, columns - column)});
  });

  const auto shrink = [&, all = shrinks.data()](int64_t i) {
    const Piece& p = all[i];
    const int first = p.segment[2] + p.row;
    lora.shrink(read(x), x.stride(0), plan.rows() + first, p.rows,
                read(a[p.slice]) + (int64_t(p.segment[0]) * max_rank + p.rank) * width, width,
                p.ranks, scale, shrunk_at(p.slice, first) + p.rank, max_rank);
  };
  int64_t* repairs = repaired.mutable_data_ptr<int64_t>();
  const auto expand = [&, all = expands.data()](int64_t i) {
    const Piece& p = all[i];
    const int first = p.segment[2] + p.row;
    const int64_t n = b[p.slice].size(2);
    const int64_t count = lora.expand(
        {write(y) + starts[p.slice], y.stride(0), plan.rows() + first, p.rows,
         shrunk_at(p.slice, first), max_rank,
         read(b[p.slice]) + int64_t(p.segment[0]) * n * max_rank, max_rank, p.segment[1],
         float(bound), add},
        p.column, p.column + p.columns);
    if (count) std::atomic_ref<int64_t>(repairs[p.segment[0]]).fetch_add(count);
  };
  share(shrinks.size(), shrink, expands.size(), expand);
}

Tensor pack_nf4(const Tensor& codes, const Tensor& absmax, int64_t n, int64_t k) {
  TORCH_CHECK(n % kPanel == 0 && k % kBlock == 0, "n must be in 16s and k in 64s");
  TORCH_CHECK(codes.scalar_type() == at::kByte && codes.is_contiguous() && codes.numel() == n * k / 2);
  TORCH_CHECK(absmax.scalar_type() == at::kFloat && absmax.is_contiguous() &&
              absmax.numel() == n * k / kBlock);
  const Nf4Kernels& nf4 = checked_kernels().nf4;
  const Tensor packed = at::empty({n / kPanel, k / kBlock, kBlockBytes}, codes.options());
  share(n / kPanel, [&](int64_t panel) {
    nf4.pack(codes.const_data_ptr<uint8_t>(), absmax.const_data_ptr<float>(), k,
             packed.mutable_data_ptr<uint8_t>(), panel, panel + 1);
  });
  return packed;
}

Tensor linear_nf4(const Tensor& x, const Tensor& packed) {
  check_rows(x, "x");
  const int64_t m = x.size(0), n = packed.size(0) * kPanel, k = packed.size(1) * kBlock;
  TORCH_CHECK(x.size(1) == k && packed.is_contiguous() && packed.size(2) == kBlockBytes);
  const Tensor y = at::empty({m, n}, x.options());
  if (m == 0) return y;
  const Nf4Kernels& nf4 = checked_kernels().nf4;
  const int64_t passes = (m + nf4.max_rows - 1) / nf4.max_rows;
  const auto first_row = [&](int64_t pass) { return pass * m / passes; };
  const Tensor arranged = at::empty({m, k * nf4.bytes_per_value}, packed.options());
  const auto arranged_at = [&](int64_t row) {
    return arranged.mutable_data_ptr<uint8_t>() + row * k * nf4.bytes_per_value;
  };
  const auto arrange = [&](int64_t pass) {
    const int64_t row = first_row(pass), rows = first_row(pass + 1) - row;
    nf4.arrange(read(x) + row * x.stride(0), x.stride(0), rows, k, arranged_at(row));
  };
  const int64_t panels = packed.size(0);
  const int64_t chunk = std::clamp<int64_t>(panels / (4 * at::get_num_threads()), 1, 8);
  const int64_t chunks = (panels + chunk - 1) / chunk;
  // Few rows: each weight is read by one thread only. Many: each thread keeps to its own rows.
  const bool by_panel = passes < 4 * at::get_num_threads();
  const auto multiply = [&](int64_t i) {
    const int64_t pass = by_panel ? i % passes : i / chunks;
    const int64_t panel = (by_panel ? i / passes : i % chunks) * chunk;
    const int64_t row = first_row(pass), rows = first_row(pass + 1) - row;
    nf4.multiply(arranged_at(row), rows, k, packed.const_data_ptr<uint8_t>(), panel,
                 std::min(panel + chunk, panels), write(y) + row * n, n);
  };
  share(passes, arrange, passes * chunks, multiply);
  return y;
}

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
  m.impl("nf4_pack", &lorry::pack_nf4);
  m.impl("nf4_linear", &lorry::linear_nf4);
}
