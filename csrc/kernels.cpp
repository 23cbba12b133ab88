// Kernels for quantized weights on CPUs: a plain C interface, one translation unit, every instruction set.
//
// Each instruction set is a region between target pragmas that defines a few vector primitives and then
// includes loops.inc, so that all of them run the same loops. The choice is made at run time. Nothing
// here checks its arguments: src/baichuan/kernels/ops.py does, once, for all callers.
//
// Layout of weights [rows, columns], the one that is saved: blocks of 16 rows. In a block, 4 columns of
// the 16 rows are 64 bytes, row after row (int8: value + 128). For int4, 8 columns are 64 bytes: the low
// nibbles hold columns 0..3, the high nibbles columns 4..7 (value + 8). Scales are bfloat16
// [block, group, 16], or [block, 16] with one scale a row. Rows are padded to 16, columns to groups.
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
constexpr int kMostBlocks = 8;  // of weights, that share a pass over many rows of activations
constexpr int kChunk = 64;   // bytes of a chunk: 4 columns of int8, 8 of int4
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

// Activations after rounding: codes [rows, columns], scales and sums [rows, groups]. The first `tiled`
// rows lie in `tiles` instead, 16 rows by 64 columns at a time, each tile 1024 bytes in a row.
struct Activations {
  const int8_t* codes;
  const float* scales;
  const int32_t* sums;
  int64_t rows, columns, groups;
  const int8_t* tiles;
  int64_t tiled;
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
  const float* query;   // [heads, width]
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

// ---- Plain C++, for any processor -------------------------------------------------------------------

namespace generic {
#define LANES 4
#define MOST_ROWS 4
#define OFFSET8 128
struct Ints { int32_t v[LANES]; };
struct Floats { float v[LANES]; };
struct Bytes { uint8_t v[4 * LANES]; };
inline Floats zero_floats() { return Floats{}; }
inline Ints set_ints(int32_t x) {
  Ints out;
  for (int i = 0; i < LANES; ++i) out.v[i] = x;
  return out;
}
inline Ints add_ints(Ints a, Ints b) {
  for (int i = 0; i < LANES; ++i) a.v[i] += b.v[i];
  return a;
}
inline Bytes load_bytes(const uint8_t* p) {
  Bytes out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
inline Bytes low_nibbles(Bytes b) {
  for (uint8_t& x : b.v) x &= 15;
  return b;
}
inline Bytes high_nibbles(Bytes b) {
  for (uint8_t& x : b.v) x >>= 4;
  return b;
}
inline Bytes prepare8(Bytes b) { return b; }
inline Ints dot4(Ints sum, Bytes w, const int8_t* a) {
  for (int i = 0; i < LANES; ++i)
    for (int j = 0; j < 4; ++j) sum.v[i] += static_cast<int32_t>(w.v[4 * i + j]) * a[j];
  return sum;
}
inline Ints dot8(Ints sum, Bytes w, const int8_t* a) { return dot4(sum, w, a); }
inline Floats load_halves(const uint16_t* p) {
  Floats out;
  for (int i = 0; i < LANES; ++i) out.v[i] = from_bf16(p[i]);
  return out;
}
inline Floats scaled_sum(Ints sum, Floats weight_scale, float scale, Floats y) {
  for (int i = 0; i < LANES; ++i)
    y.v[i] = std::fma(static_cast<float>(sum.v[i]), weight_scale.v[i] * scale, y.v[i]);
  return y;
}
inline void store_floats(float* p, Floats y) { std::memcpy(p, y.v, sizeof y.v); }
inline Floats load_floats(const float* p) {
  Floats out;
  std::memcpy(out.v, p, sizeof out.v);
  return out;
}
inline Floats set_floats(float x) {
  Floats out;
  for (int i = 0; i < LANES; ++i) out.v[i] = x;
  return out;
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  for (int i = 0; i < LANES; ++i) c.v[i] = std::fma(a.v[i], b.v[i], c.v[i]);
  return c;
}
inline float total_of(const Floats* s) {
  float part[16];
  std::memcpy(part, s, sizeof part);
  return sum16(part);
}
#include "loops.inc"
#undef LANES
#undef MOST_ROWS
#undef OFFSET8
}  // namespace generic

#if defined(__x86_64__)

// ---- AVX2 -------------------------------------------------------------------------------------------

#define AVX2_PRIMITIVES                                                                                \
  using Ints = __m256i;                                                                                \
  using Floats = __m256;                                                                               \
  using Bytes = __m256i;                                                                               \
  inline Floats zero_floats() { return _mm256_setzero_ps(); }                                          \
  inline Ints set_ints(int32_t x) { return _mm256_set1_epi32(x); }                                     \
  inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }                              \
  inline Bytes load_bytes(const uint8_t* p) {                                                          \
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));                                    \
  }                                                                                                    \
  inline Bytes low_nibbles(Bytes b) { return _mm256_and_si256(b, _mm256_set1_epi8(15)); }              \
  inline Bytes high_nibbles(Bytes b) { return low_nibbles(_mm256_srli_epi16(b, 4)); }                  \
  inline __m256i four(const int8_t* a) {                                                               \
    int32_t bytes;                                                                                     \
    std::memcpy(&bytes, a, 4);                                                                         \
    return _mm256_set1_epi32(bytes);                                                                   \
  }                                                                                                    \
  inline Floats load_halves(const uint16_t* p) {                                                       \
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));                         \
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));                    \
  }                                                                                                    \
  inline Floats scaled_sum(Ints sum, Floats weight_scale, float scale, Floats y) {                     \
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(weight_scale, _mm256_set1_ps(scale)), y); \
  }                                                                                                    \
  inline void store_floats(float* p, Floats y) { _mm256_storeu_ps(p, y); }                             \
  inline Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }                             \
  inline Floats set_floats(float x) { return _mm256_set1_ps(x); }                                      \
  inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }        \
  inline float total_of(const Floats* s) {                                                              \
    const __m256 eight = _mm256_add_ps(s[0], s[1]);                                                     \
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));     \
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));                                     \
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));                                        \
  }

#define LANES 8
#define MOST_ROWS 4

BEGIN_TARGET("avx2,fma")
namespace avx2 {
#define OFFSET8 0
AVX2_PRIMITIVES
// Codes below 16 cannot overflow the 16-bit sums of maddubs.
inline Ints dot4(Ints sum, Bytes w, const int8_t* a) {
  const __m256i pairs = _mm256_maddubs_epi16(w, four(a));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
// Codes of int8 could, so they become signed again; |w| times a with w's sign stays within 16 bits.
inline Bytes prepare8(Bytes b) { return _mm256_xor_si256(b, _mm256_set1_epi8(-128)); }
inline Ints dot8(Ints sum, Bytes w, const int8_t* a) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(four(a), w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#include "loops.inc"
#undef OFFSET8
}  // namespace avx2
END_TARGET

// ---- AVX2 with VNNI ---------------------------------------------------------------------------------

BEGIN_TARGET("avx2,fma,avxvnni")
namespace avx2_vnni {
#define OFFSET8 128
AVX2_PRIMITIVES
inline Ints dot4(Ints sum, Bytes w, const int8_t* a) {
  return _mm256_dpbusd_avx_epi32(sum, w, four(a));
}
inline Bytes prepare8(Bytes b) { return b; }
inline Ints dot8(Ints sum, Bytes w, const int8_t* a) { return dot4(sum, w, a); }
#include "loops.inc"
#undef OFFSET8
}  // namespace avx2_vnni
END_TARGET

#undef LANES
#undef MOST_ROWS

// ---- AVX512 with VNNI -------------------------------------------------------------------------------

#define AVX512_PRIMITIVES                                                                              \
  using Ints = __m512i;                                                                                \
  using Floats = __m512;                                                                               \
  using Bytes = __m512i;                                                                               \
  inline Floats zero_floats() { return _mm512_setzero_ps(); }                                          \
  inline Ints set_ints(int32_t x) { return _mm512_set1_epi32(x); }                                     \
  inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }                              \
  inline Bytes load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }                          \
  inline Bytes low_nibbles(Bytes b) { return _mm512_and_si512(b, _mm512_set1_epi8(15)); }              \
  inline Bytes high_nibbles(Bytes b) { return low_nibbles(_mm512_srli_epi16(b, 4)); }                  \
  inline Bytes prepare8(Bytes b) { return b; }                                                         \
  inline Ints dot4(Ints sum, Bytes w, const int8_t* a) {                                               \
    int32_t bytes;                                                                                     \
    std::memcpy(&bytes, a, 4);                                                                         \
    return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(bytes));                                      \
  }                                                                                                    \
  inline Ints dot8(Ints sum, Bytes w, const int8_t* a) { return dot4(sum, w, a); }                     \
  inline Floats load_halves(const uint16_t* p) {                                                       \
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));                      \
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));                    \
  }                                                                                                    \
  inline Floats scaled_sum(Ints sum, Floats weight_scale, float scale, Floats y) {                     \
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(weight_scale, _mm512_set1_ps(scale)), y); \
  }                                                                                                    \
  inline void store_floats(float* p, Floats y) { _mm512_storeu_ps(p, y); }                             \
  inline Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }                             \
  inline Floats set_floats(float x) { return _mm512_set1_ps(x); }                                      \
  inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }        \
  inline float total_of(const Floats* s) {                                                              \
    const __m256 low = _mm512_castps512_ps256(s[0]);                                                    \
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(s[0]), 1));            \
    const __m256 eight = _mm256_add_ps(low, high);                                                      \
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));     \
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));                                     \
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));                                        \
  }

#define LANES 16
#define MOST_ROWS 12
#define OFFSET8 128

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni" WIDE_VECTORS)
namespace avx512_vnni {
AVX512_PRIMITIVES
#include "loops.inc"
}  // namespace avx512_vnni
END_TARGET

// ---- AMX: tiles of 16 activation rows by 16 weight rows; what is left over goes to AVX512 ----------

BEGIN_TARGET("avx2,fma,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")
namespace amx {

constexpr int kTile = 16;         // rows of a tile
constexpr int kTileColumns = 64;  // int8 columns of a tile
constexpr int kPart = 1280;       // columns of a part, about

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Spread the nibbles of a block over signed bytes, 64 bytes for 4 columns of 16 rows: a tile's layout.
void unpack(const uint8_t* codes, int64_t chunks, int8_t* panel) {
  const __m512i mask = _mm512_set1_epi8(15), offset = _mm512_set1_epi8(8);
  for (int64_t c = 0; c < chunks; ++c) {
    const __m512i packed = _mm512_loadu_si512(codes + c * kChunk);
    __builtin_prefetch(codes + c * kChunk + kAhead);
    const __m512i low = _mm512_and_si512(packed, mask);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
    _mm512_store_si512(panel + c * 128, _mm512_sub_epi8(low, offset));
    _mm512_store_si512(panel + c * 128 + 64, _mm512_sub_epi8(high, offset));
  }
}

// y [16, 16] = fma(sum - offset * sum of activations, scales, y); the first group begins at zero.
inline void add_tile(const int32_t* sum, const Activations& a, int64_t row, int64_t g, int32_t offset,
                     __m512 weight_scale, float* y) {
  for (int r = 0; r < kTile; ++r) {
    const int64_t at = (row + r) * a.groups + g;
    __m512i total = _mm512_load_si512(sum + r * kTile);
    if (offset) total = _mm512_sub_epi32(total, _mm512_set1_epi32(offset * a.sums[at]));
    const __m512 scale = _mm512_mul_ps(weight_scale, _mm512_set1_ps(a.scales[at]));
    const __m512 before = g ? _mm512_loadu_ps(y + r * kBlock) : _mm512_setzero_ps();
    _mm512_storeu_ps(y + r * kBlock, _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), scale, before));
  }
}

// 32 rows of activations by two blocks of weights within one group: y += their products. `left` and
// `right` are the blocks' codes for this group, in tiles.
template <int BITS>
inline void square(const Activations& a, int64_t row, int64_t g, const Weights& w, int64_t block,
                   const int8_t* left, const int8_t* right, float* left_y, float* right_y) {
  alignas(64) int32_t sum[4][kTile * kTile];
  constexpr int64_t kTileBytes = kTile * kTileColumns;
  const int64_t tiles = a.columns / kTileColumns;
  const int8_t* above = a.tiles + (row / kTile * tiles + g * w.group / kTileColumns) * kTileBytes;
  const int8_t* below = above + tiles * kTileBytes;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < w.group * kTile; k += kTileBytes) {
    _tile_loadd(4, above + k, kTileColumns);
    _tile_loadd(5, below + k, kTileColumns);
    _tile_loadd(6, left + k, kTileColumns);
    _tile_loadd(7, right + k, kTileColumns);
    if (BITS == 4) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbsud(0, 4, 6);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(2, 5, 6);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sum[0], 64);
  _tile_stored(1, sum[1], 64);
  _tile_stored(2, sum[2], 64);
  _tile_stored(3, sum[3], 64);
  constexpr int32_t kOffset = BITS == 4 ? 0 : 128;
  const __m512 left_scale = avx512_vnni::load_halves(w.block_scales(block, a.groups) + g * w.scale_step);
  const __m512 right_scale =
      avx512_vnni::load_halves(w.block_scales(block + 1, a.groups) + g * w.scale_step);
  add_tile(sum[0], a, row, g, kOffset, left_scale, left_y);
  add_tile(sum[1], a, row, g, kOffset, right_scale, right_y);
  add_tile(sum[2], a, row + kTile, g, kOffset, left_scale, left_y + kTile * kBlock);
  add_tile(sum[3], a, row + kTile, g, kOffset, right_scale, right_y + kTile * kBlock);
}

// All rows of activations by `count` blocks of weights, an even number; out is [count, rows, 16]. The
// columns are taken in parts, so that a part's unpacked weights stay in the second-level cache while
// all rows pass by; `panel` has room for kMostBlocks * 16 * kPart bytes.
template <int BITS>
void blocks(const Activations& a, const Weights& w, int64_t block, int count, int8_t* panel, float* out) {
  const int64_t part = kPart / w.group, bytes = kBlock * w.group * BITS / 8;
  // Static: GCC's intrinsic says that it reads 8 bytes, so stores to the rest of a local may vanish.
  static constexpr TileConfig config;
  _tile_loadconfig(&config);
  for (int64_t first = 0; first < a.groups; first += part) {
    const int64_t last = first + part < a.groups ? first + part : a.groups;
    const int8_t* codes[kMostBlocks];
    for (int j = 0; j < count; ++j) {
      const uint8_t* packed = w.block_codes(block + j, a.groups) + first * bytes;
      int8_t* room = panel + j * kBlock * kPart;
      codes[j] = BITS == 4 ? room : reinterpret_cast<const int8_t*>(packed);
      if (BITS == 4) unpack(packed, (last - first) * w.group / 8, room);
    }
    for (int64_t row = 0; row < a.tiled; row += 2 * kTile)
      for (int64_t g = first; g < last; ++g)
        for (int j = 0; j < count; j += 2) {
          const int64_t skip = (g - first) * w.group * kTile;
          float* y = out + (j * a.rows + row) * kBlock;
          square<BITS>(a, row, g, w, block + j, codes[j] + skip, codes[j + 1] + skip, y,
                       y + a.rows * kBlock);
        }
  }
  _tile_release();
  for (int j = 0; j < count; ++j)
    avx512_vnni::one_block<BITS>(a, a.tiled, w, block + j, out + j * a.rows * kBlock);
}

// Ask the system for the tile registers, once per process; false where it has none.
bool permitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
}  // namespace amx
END_TARGET

#undef LANES
#undef MOST_ROWS
#undef OFFSET8
#endif  // __x86_64__

// ---- NEON with dot products -------------------------------------------------------------------------

#if defined(__aarch64__)
BEGIN_TARGET("arch=armv8.2-a+dotprod")
namespace neon {
#define LANES 4
#define MOST_ROWS 8
#define OFFSET8 0
using Ints = int32x4_t;
using Floats = float32x4_t;
using Bytes = uint8x16_t;
inline Floats zero_floats() { return vdupq_n_f32(0.0f); }
inline Ints set_ints(int32_t x) { return vdupq_n_s32(x); }
inline Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
inline Bytes load_bytes(const uint8_t* p) { return vld1q_u8(p); }
inline Bytes low_nibbles(Bytes b) { return vandq_u8(b, vdupq_n_u8(15)); }
inline Bytes high_nibbles(Bytes b) { return vshrq_n_u8(b, 4); }
inline Bytes prepare8(Bytes b) { return veorq_u8(b, vdupq_n_u8(128)); }
inline Ints dot4(Ints sum, Bytes w, const int8_t* a) {
  int32_t bytes;
  std::memcpy(&bytes, a, 4);
  return vdotq_s32(sum, vreinterpretq_s8_u8(w), vreinterpretq_s8_s32(vdupq_n_s32(bytes)));
}
inline Ints dot8(Ints sum, Bytes w, const int8_t* a) { return dot4(sum, w, a); }
inline Floats load_halves(const uint16_t* p) {
  return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
}
inline Floats scaled_sum(Ints sum, Floats weight_scale, float scale, Floats y) {
  return vfmaq_f32(y, vcvtq_f32_s32(sum), vmulq_n_f32(weight_scale, scale));
}
inline void store_floats(float* p, Floats y) { vst1q_f32(p, y); }
inline Floats load_floats(const float* p) { return vld1q_f32(p); }
inline Floats set_floats(float x) { return vdupq_n_f32(x); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }
inline float total_of(const Floats* s) {
  const float32x4_t four = vaddq_f32(vaddq_f32(s[0], s[2]), vaddq_f32(s[1], s[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
#include "loops.inc"
#undef LANES
#undef MOST_ROWS
#undef OFFSET8
}  // namespace neon
END_TARGET
#endif  // __aarch64__

// ---- Choice of the instruction set ------------------------------------------------------------------

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

// ---- Work of one call -------------------------------------------------------------------------------

constexpr int64_t kFewRows = 32;      // below it, a thread runs through a part of the weights once
constexpr int64_t kLeastBlocks = 8;  // that a thread takes at a time

constexpr int64_t kHeads = 4;  // of one task: what they read of a block is one long run of memory

inline int64_t threads() {
#if defined(_OPENMP)
  return omp_get_num_threads();
#else
  return 1;
#endif
}

constexpr int64_t kMostRows = 512;  // activation rows of one pass; bounds the scratch memory

template <typename T>
struct Scratch {  // grows, is kept by its thread, is never cleared
  std::unique_ptr<T, decltype(&std::free)> memory{nullptr, &std::free};
  int64_t size = 0;
  T* get(int64_t count) {
    if (count > size) {
      const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
      memory.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      size = count;
    }
    return memory.get();
  }
};

inline int64_t size_of(int32_t dtype) { return dtype == kFloat32 ? 4 : 2; }

inline void store_row(void* to, int32_t dtype, int64_t at, const float* from, int64_t count) {
  if (dtype == kFloat32) {
    std::memcpy(static_cast<float*>(to) + at, from, count * sizeof(float));
    return;
  }
  uint16_t* half = static_cast<uint16_t*>(to) + at;
  for (int64_t i = 0; i < count; ++i) half[i] = to_bf16(from[i]);
}

inline void add_row(const void* from, int32_t dtype, int64_t at, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    to[i] += dtype == kFloat32 ? static_cast<const float*>(from)[at + i]
                               : from_bf16(static_cast<const uint16_t*>(from)[at + i]);
}
}  // namespace

// Products of a weight and what stands around it; the same fields in src/baichuan/kernels/native.py.
struct Linear {
  const void* x;          // [rows, columns], dtype
  const void* norm;       // [columns], norm_dtype, or null: weight of an RMS norm that x goes through first
  const uint8_t* codes;   // weights [outputs, columns]
  const uint16_t* scales;
  const uint8_t* up_codes;  // or null; else y = silu(x w) * (x up)
  const uint16_t* up_scales;
  const void* residual;  // [rows, outputs], dtype, or null: added to y
  void* y;               // [rows, outputs], dtype
  int64_t rows, columns, outputs, group;
  int32_t bits, scale_groups, up_bits, up_scale_groups, dtype, norm_dtype, level;
  float eps;
};

// Attention from the newest position of some sequences; see native.py.
struct Attend {
  // [sequences, heads, width], dtype; the rows of sequences are `..._stride` numbers apart.
  const void *query, *key, *value;
  void* out;                   // [sequences, heads, width], dtype
  void* const* const* blocks;  // per sequence its blocks, each [layers, 2, heads, block, width], dtype
  const int64_t* counts;       // positions held; `key` and `value` go behind them
  const float* slopes;         // [heads], or null: no ALiBi
  const float *cos, *sin;      // [sequences, width / 2], or null: rotate query and key by these angles
  int64_t sequences, heads, width, block, layer, query_stride, key_stride, value_stride;
  int32_t dtype, level;
};

// One entry of a program: either of the two, the other is null.
struct Call {
  const Linear* linear;
  const Attend* attend;
};

namespace {

// Memory for what is on its way through one product, shared by all of a program.
struct Workspace {
  Scratch<int8_t> codes, tiles;
  Scratch<float> scales;
  Scratch<int32_t> sums;
};

// A part of a program that all threads do together; it may leave threads before others have finished.
class Work {
 public:
  virtual ~Work() = default;
  virtual void reserve(Workspace&) {}
  virtual void use(Workspace&) {}
  virtual void run() = 0;
};

class Products : public Work {
 public:
  Products(const Linear& call, int64_t first, int64_t rows)
      : call_(call), run_(implementation(call.level)), first_(first) {
    const int64_t groups = (call.columns + call.group - 1) / call.group;
    a_ = {nullptr, nullptr, nullptr, rows, groups * call.group, groups, nullptr, 0};
    if (call.level == kAmx && call.group % 64 == 0) a_.tiled = rows / 32 * 32;
    w_ = weights(call.codes, call.scales, call.bits, call.scale_groups);
    up_ = weights(call.up_codes, call.up_scales, call.up_bits, call.up_scale_groups);
  }

  void reserve(Workspace& space) override { place(space); }
  void use(Workspace& space) override { place(space); }

  void run() override {
#pragma omp for schedule(static)
    for (int64_t m = 0; m < a_.rows; ++m) {
      round(m, code_ + m * a_.columns, scale_ + m * a_.groups, sum_ + m * a_.groups);
      if (m < a_.tiled) spread(m, code_ + m * a_.columns, tile_);
    }
    const int64_t blocks = (call_.outputs + kBlock - 1) / kBlock;
    for (int64_t block = 0; block < blocks;) {
      block = next_.load(std::memory_order_relaxed);
      const int64_t count = share(blocks - block);
      if (count > 0 && next_.compare_exchange_weak(block, block + count)) multiply(block, count);
    }
  }

 private:
  Weights weights(const uint8_t* codes, const uint16_t* scales, int32_t bits, int32_t groups) const {
    return {codes, scales, call_.outputs, call_.group, bits, groups > 1 ? kBlock : 0};
  }

  void place(Workspace& space) {
    a_.codes = code_ = space.codes.get(a_.rows * a_.columns);
    a_.tiles = tile_ = space.tiles.get(a_.tiled * a_.columns);
    a_.scales = scale_ = space.scales.get(a_.rows * a_.groups);
    a_.sums = sum_ = space.sums.get(a_.rows * a_.groups);
  }

  // How many of the blocks that are left a thread takes: long runs through memory, shorter ones towards
  // the end, so that all finish together. With many rows, as many as share one pass over them.
  int64_t share(int64_t left) const {
    const int64_t most = a_.rows < kFewRows ? left / (2 * threads()) : kMostBlocks, least = kLeastBlocks;
    const int64_t wanted = most < least ? least : most / least * least;
    return wanted < left ? wanted : left;
  }

  void round(int64_t m, int8_t* codes, float* scales, int32_t* sums) const {
    thread_local Scratch<float> rows;
    float* row = rows.get(call_.columns);
    const int64_t at = (first_ + m) * call_.columns * size_of(call_.dtype);
    run_.widen(static_cast<const char*>(call_.x) + at, call_.dtype, call_.columns, row);
    if (call_.norm) run_.normalize(row, call_.norm, call_.norm_dtype, call_.columns, call_.eps);
    run_.round_row(row, call_.columns, call_.group, a_.groups, codes, scales, sums);
  }

  // Copy a row's codes to its place in the tiles.
  void spread(int64_t m, const int8_t* codes, int8_t* tiles) const {
    int8_t* to = tiles + m / 16 * 16 * a_.columns + m % 16 * 64;
    for (int64_t k = 0; k < a_.columns; k += 64) std::memcpy(to + k * 16, codes + k, 64);
  }

  // `count` blocks of outputs for all rows.
  void multiply(int64_t block, int64_t count) const {
    thread_local Scratch<float> tiles;
    const int64_t size = a_.rows * kBlock;
    float* y = tiles.get(2 * count * size);
    products(w_, block, count, y);
    if (up_.codes) {
      products(up_, block, count, y + count * size);
      run_.gate_up(y, y + count * size, count * size);
    }
    // Row by row, so that what lies together in memory is written together.
    for (int64_t m = 0; m < a_.rows; ++m)
      for (int64_t j = 0; j < count; ++j) {
        const int64_t begin = (block + j) * kBlock, at = (first_ + m) * call_.outputs + begin;
        const int64_t width = call_.outputs - begin < kBlock ? call_.outputs - begin : kBlock;
        float* row = y + j * size + m * kBlock;
        if (call_.residual) add_row(call_.residual, call_.dtype, at, row, width);
        store_row(call_.y, call_.dtype, at, row, width);
      }
  }

  void products(const Weights& w, int64_t block, int64_t count, float* y) const {
    int64_t done = 0;
#if defined(__x86_64__)
    if (a_.tiled) {
      thread_local Scratch<int8_t> panel;
      int8_t* room = panel.get(kMostBlocks * kBlock * amx::kPart);
      done = count / 2 * 2;
      (w.bits == 4 ? amx::blocks<4> : amx::blocks<8>)(a_, w, block, static_cast<int>(done), room, y);
    }
#endif
    run_.blocks(a_, w, block + done, count - done, y + done * a_.rows * kBlock);
  }

  const Linear& call_;
  const Implementation& run_;
  int64_t first_;
  Activations a_;
  Weights w_, up_;
  int8_t *code_ = nullptr, *tile_ = nullptr;
  float* scale_ = nullptr;
  int32_t* sum_ = nullptr;
  std::atomic<int64_t> next_{0};  // block of weights that nobody has taken yet
};

class Attention : public Work {
 public:
  explicit Attention(const Attend& call) : call_(call), run_(implementation(call.level)) {}

  void run() override {
    const int64_t parts = (call_.heads + kHeads - 1) / kHeads;
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t task = 0; task < call_.sequences * parts; ++task)
      attend(task / parts, task % parts * kHeads);
  }

 private:
  // Append the newest position of some heads of a sequence, and attend from it.
  void attend(int64_t sequence, int64_t first) const {
    thread_local Scratch<float> scratch;
    const int64_t size = size_of(call_.dtype), width = call_.width, held = call_.counts[sequence];
    const int64_t heads = call_.heads - first < kHeads ? call_.heads - first : kHeads;
    const int64_t half = call_.heads * call_.block * width * size;  // bytes of a layer's keys in a block
    const int64_t keys = 2 * call_.layer * half + first * call_.block * width * size;
    float* query = scratch.get(heads * (2 * width + held + 2));
    Heads a = {};
    a.blocks = call_.blocks[sequence];
    a.keys = keys;
    a.values = keys + half;
    a.heads = heads;
    a.width = width;
    a.block = call_.block;
    a.count = held + 1;
    a.query = query;
    a.slopes = call_.slopes ? call_.slopes + first : nullptr;
    a.out = query + heads * width;
    a.scores = a.out + heads * width;
    a.totals = a.scores + heads * a.count;
    const auto row = [&](const void* rows, int64_t stride, int64_t head) {
      return static_cast<const char*>(rows) + (sequence * stride + (first + head) * width) * size;
    };
    for (int64_t h = 0; h < heads; ++h) {
      char *key = a.at(held, a.keys, h, size), *value = a.at(held, a.values, h, size);
      turned(row(call_.key, call_.key_stride, h), sequence, query);
      store_row(key, call_.dtype, 0, query, width);
      std::memcpy(value, row(call_.value, call_.value_stride, h), width * size);
    }
    for (int64_t h = 0; h < heads; ++h)
      turned(row(call_.query, call_.query_stride, h), sequence, query + h * width);
    run_.attend(a, call_.dtype);
    store_row(call_.out, call_.dtype, (sequence * call_.heads + first) * width, a.out, heads * width);
  }

  // One head of a query or key in float32: rotated and rounded to its dtype again, if at all.
  void turned(const void* from, int64_t sequence, float* to) const {
    const int64_t half = call_.width / 2;
    run_.widen(from, call_.dtype, call_.width, to);
    if (!call_.cos) return;
    const float *cos = call_.cos + sequence * half, *sin = call_.sin + sequence * half;
    for (int64_t i = 0; i < half; ++i) {
      const float x = to[i], y = to[half + i];
      to[i] = x * cos[i] - y * sin[i];
      to[half + i] = y * cos[i] + x * sin[i];
    }
    if (call_.dtype == kFloat32) return;
    for (int64_t i = 0; i < call_.width; ++i) to[i] = from_bf16(to_bf16(to[i]));
  }

  const Attend& call_;
  const Implementation& run_;
};

std::vector<std::unique_ptr<Work>> planned(const Call* calls, int64_t count) {
  std::vector<std::unique_ptr<Work>> works;
  for (int64_t i = 0; i < count; ++i) {
    if (calls[i].attend) works.push_back(std::make_unique<Attention>(*calls[i].attend));
    if (!calls[i].linear) continue;
    const Linear& linear = *calls[i].linear;
    for (int64_t first = 0; first < linear.rows; first += kMostRows) {
      const int64_t left = linear.rows - first;
      works.push_back(std::make_unique<Products>(linear, first, left < kMostRows ? left : kMostRows));
    }
  }
  return works;
}

}  // namespace

extern "C" {

#define BAICHUAN_EXPORT __attribute__((visibility("default")))

BAICHUAN_EXPORT int32_t baichuan_available(int32_t level) { return available(level) ? 1 : 0; }

// Run calls one after the other, with one team of threads for all: each may read what those before
// it have written.
BAICHUAN_EXPORT void baichuan_run(const Call* calls, int64_t count) {
  thread_local Workspace space;
  const auto works = planned(calls, count);
  for (const auto& work : works) work->reserve(space);  // only then do addresses stay
  for (const auto& work : works) work->use(space);
#pragma omp parallel
  for (const auto& work : works) {
    work->run();
#pragma omp barrier
  }
}

}  // extern "C"
