// Kernels for quantized weights on CPUs: a plain C interface, one translation unit, every instruction set.
//
// Each instruction set (generic.inc, x86.inc, neon.inc) is a region between target pragmas that defines a
// few vector primitives and then includes loops.inc, so that all of them run the same loops. The choice
// is made at run time. calls.inc has what Python calls. Nothing here checks its arguments:
// src/baichuan/kernels/ops.py and paged.py do, once, for all callers.
//
// Layout of weights [rows, columns], the one that is saved: blocks of 16 rows. In a block, 4 columns of
// the 16 rows are 64 bytes, row after row (int8: value + 128). For int4, 8 columns are 64 bytes: the low
// nibbles hold columns 0..3, the high nibbles columns 4..7 (value + 8). For int3, 32 columns are three times
// 64 bytes, the first 24 as int4's, but value + 4; the bits that nibbles have to spare, 3 and 7, hold the
// other 8: bit 0 of their codes in the first 64 bytes, bit 1 in the second, bit 2 in the third. Scales are
// bfloat16 [block, group, 16], or [block, 16] with one scale a row. Rows are padded to 16, columns to groups.
//
// Arithmetic: activations are rounded to int8 with one float32 scale per row and group; products are
// summed in int32, exactly, within a group; then y = fma(float(sum), weight scale * activation scale, y)
// in float32, group after group. Every path does just this, so a result does not depend, to the last
// bit, on the instruction set, the number of rows in the batch or the number of threads.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own headers
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(__linux__) && defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int kBlock = 16;   // rows of a block
constexpr int kStreams = 4;  // through the weights, that a thread follows at a time
constexpr int kHeads = 4;    // that attend in turns on one thread
constexpr int kMostBlocks = 8;  // of weights, that share a pass over many rows of activations
constexpr int kChunk = 64;   // bytes of a chunk: 4 columns of int8, 8 of int4, a third of 32 of int3
constexpr int kAhead = 4096;  // bytes fetched in advance, over all streams of a thread, into the second-level cache
// Of a softmax, what is e^-60 of the largest share is none: nobody sees it, but its products with values
// would be subnormal, which costs an Intel processor a hundred cycles each.
constexpr float kNothing = -60.0f;
// A group of activations without a magnitude in this range has no codes: scale 0 below, NaN above.
constexpr float kLeast = 1e-30f, kMost = std::numeric_limits<float>::max();

// Functions between the two are compiled for an instruction set.
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BEGIN_TARGET(isa) PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#define WIDE_VECTORS ""  // clang has no such target; it takes 512 bits where the code asks for them
#else
#define BEGIN_TARGET(isa) PRAGMA(GCC push_options) PRAGMA(GCC target(isa))
#define END_TARGET PRAGMA(GCC pop_options)
#define WIDE_VECTORS ",prefer-vector-width=512"
#endif

// Inlined into every region, so that each instruction set compiles it for itself.
#define ALWAYS inline __attribute__((always_inline))

enum Dtype : int32_t { kFloat32 = 0, kBFloat16 = 1 };

// Activations after rounding: codes [rows, columns], scales and sums [rows, groups]. For AMX the codes
// lie in `tiles` too, 16 rows by 64 columns at a time, each tile 1024 bytes in a row; else it is null.
struct Activations {
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
  int64_t rows, columns, groups;
  const int8_t* tiles;
};

struct Weights {
  const uint8_t* codes;
  const uint16_t* scales;
  int64_t rows, group;
  int32_t bits;
  int32_t scale_step;  // from one group's scales to the next's: 16, or 0 where a row has one scale
  const uint8_t* block_codes(int64_t block, int64_t groups) const {
    return codes + block * groups * group * kBlock * bits / 8;
  }
  const uint16_t* block_scales(int64_t block, int64_t groups) const {
    return scales + block * kBlock * (scale_step ? groups : 1);
  }
};

// Some heads of one sequence, whose keys and values lie in blocks of `block` positions.
struct Heads {
  void* const* blocks;
  int64_t keys, values;  // bytes from a block's start to the first of these heads: [heads, block, width]
  int64_t heads, width, block, count;
  float* query;         // [heads, width]
  const float* slopes;  // [heads], or null: no ALiBi
  float *scores, *totals, *out;  // [heads, count], [heads], [heads, width]
  float slope(int64_t head) const { return slopes ? slopes[head] : 0.0f; }
  // Where a position of a head lies, for numbers of `size` bytes.
  char* at(int64_t position, int64_t offset, int64_t head, int64_t size) const {
    char* start = static_cast<char*>(blocks[position / block]) + offset;
    return start + (head * block + position % block) * width * size;
  }
  template <typename T>
  const T* rows(int64_t position, int64_t offset, int64_t head) const {
    return reinterpret_cast<const T*>(at(position, offset, head, sizeof(T)));
  }
};

struct Implementation {
  void (*blocks)(const Activations&, const Weights&, int64_t block, int64_t count, float* out);
  void (*round_row)(const float*, int64_t, int64_t, int64_t, int8_t*, float*, int32_t*);
  void (*widen)(const void*, int32_t, int64_t, float*);
  void (*normalize)(float*, const void*, int32_t, int64_t, float);
  void (*gate_up)(float*, const float*, int64_t);
  void (*attend)(const Heads&, int32_t);
};

ALWAYS float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

ALWAYS uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 64);  // NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// e^x with a relative error below 2e-7: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2]. Plain
// arithmetic, so that compilers make vectors of it; never subnormal, never infinite.
ALWAYS float exponential(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  // Added to it, a small number is rounded to an integer, which is then in the low bits.
  constexpr float kRound = 12582912.0f;
  const float shifted = x * 1.44269504f + kRound, n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.98756915e-4f;
  p = p * r + 1.39819995e-3f;
  p = p * r + 8.33345191e-3f;
  p = p * r + 4.16657959e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 5.00000012e-1f;
  p = p * r * r + r + 1.0f;
  uint32_t bits;
  std::memcpy(&bits, &shifted, 4);
  bits = (bits + 127u) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}

// Largest magnitude; bits of non-negative floats are ordered as integers, and a NaN is above them all.
ALWAYS float largest(const float* x, int64_t count) {
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float value;
  std::memcpy(&value, &most, 4);
  return value;
}

// Sum of 16 numbers, always in the same order: halves onto each other. Each region has it for vectors.
ALWAYS float sum16(float* part) {
  for (int half = 8; half; half /= 2)
    for (int j = 0; j < half; ++j) part[j] += part[j + half];
  return part[0];
}

#include "generic.inc"
#if defined(__x86_64__)
#include "x86.inc"
#elif defined(__aarch64__)
#include "neon.inc"
#endif

#if defined(__x86_64__)
// Features of leaf 7 by their bits: not every compiler's __builtin_cpu_supports knows their names.
enum Register { kEax = 0, kEdx = 3 };
bool has_feature(unsigned subleaf, Register where, int bit) {
  unsigned words[4] = {};
  return __get_cpuid_count(7, subleaf, words, words + 1, words + 2, words + 3) && (words[where] >> bit & 1);
}
#endif

enum Level : int32_t { kGeneric = 0, kAvx2 = 1, kAvx2Vnni = 2, kAvx512Vnni = 3, kAmx = 4, kNeon = 5 };

bool available(int32_t level) {
  switch (level) {
    case kGeneric:
      return true;
#if defined(__x86_64__)
    case kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case kAvx2Vnni:
      return available(kAvx2) && has_feature(1, kEax, 4);
    case kAvx512Vnni:
      return available(kAvx2) && __builtin_cpu_supports("avx512vnni") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    case kAmx:
      return available(kAvx512Vnni) && has_feature(0, kEdx, 24) && has_feature(0, kEdx, 25) &&
             amx::permitted();
#elif defined(__aarch64__) && defined(__linux__)
    case kNeon:
      return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    case kNeon:
      return true;
#endif
    default:
      return false;
  }
}

const Implementation& implementation(int32_t level) {
  switch (level) {
#if defined(__x86_64__)
    case kAvx2:
      return avx2::kImplementation;
    case kAvx2Vnni:
      return avx2_vnni::kImplementation;
    case kAvx512Vnni:
    case kAmx:
      return avx512_vnni::kImplementation;
#elif defined(__aarch64__)
    case kNeon:
      return neon::kImplementation;
#endif
    default:
      return generic::kImplementation;
  }
}

}  // namespace

#include "calls.inc"
#include "dequantize.inc"
