// NF4 as the nf4*.cpp files read it. Included before they name their instructions: only constants,
// and functions with internal linkage.
#pragma once

#include <cstring>

#include "kernels.h"

namespace lorry {
namespace {

// The NF4 code book (Dettmers et al., QLoRA, appendix E; bitsandbytes' get_4bit_type("nf4")).
constexpr float kCodes[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
// Rounded to bf16, the codes are off by up to 0.2 %. Times this factor (the best of 400,000 tried),
// their error is 0.59 of that; the scales, in fp32, take the factor back.
constexpr float kStretch = 1.437005f;

inline bf16 code_in_bf16(int code) {
  const float value = kCodes[code] * kStretch;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline uint8_t code_at(const uint8_t* codes, int64_t index) {
  const uint8_t both = codes[index / 2];
  return index % 2 ? both & 15 : both >> 4;  // bitsandbytes: the first of two in the high bits
}

// The 16 scales that end a block.
inline void pack_scales(const float* absmax, int64_t panel, int64_t block, int64_t blocks,
                        uint8_t* to) {
  for (int c = 0; c < kPanel; ++c) {
    const float scale = absmax[(panel * kPanel + c) * blocks + block] / kStretch;
    std::memcpy(to + c * sizeof scale, &scale, sizeof scale);
  }
}

}  // namespace
}  // namespace lorry
