// What this machine can do at best: read memory, and multiply int8, with all its cores.
//
//   limits bandwidth BYTES    GB/s of reading a buffer of that size, in passes
//   limits int8 SECONDS       int8 GMAC/s: vpdpbusd (VNNI), and tdpbusd (AMX) where the processor has it
//
// Prints JSON. Each figure is the median of its rounds, with the highest beside it.

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own headers
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace {

constexpr int kRounds = 7;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The results of a measurement must reach something that the compiler cannot leave out.
volatile int64_t sink;

void print(const char* name, std::vector<double> values, const char* end) {
  std::sort(values.begin(), values.end());
  std::printf("\"%s\": {\"median\": %.1f, \"highest\": %.1f}%s", name, values[values.size() / 2],
              values.back(), end);
}

__attribute__((target("avx512f"))) int64_t read512(const char* data, size_t bytes) {
  // Four streams, as several rows of a matrix are read: one alone may not fill the memory's queues.
  const size_t part = bytes / 4 / 64 * 64;
  __m512i sum[4] = {};
  for (size_t at = 0; at < part; at += 64)
    for (int s = 0; s < 4; s++)
      sum[s] = _mm512_xor_si512(sum[s], _mm512_loadu_si512(data + s * part + at));
  const __m512i low = _mm512_xor_si512(sum[0], sum[1]), high = _mm512_xor_si512(sum[2], sum[3]);
  return _mm512_reduce_add_epi64(_mm512_xor_si512(low, high));
}

__attribute__((target("avx2"))) int64_t read256(const char* data, size_t bytes) {
  const size_t part = bytes / 4 / 32 * 32;
  __m256i sum[4] = {};
  for (size_t at = 0; at < part; at += 32)
    for (int s = 0; s < 4; s++)
      sum[s] = _mm256_xor_si256(
          sum[s], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(data + s * part + at)));
  const __m256i low = _mm256_xor_si256(sum[0], sum[1]), high = _mm256_xor_si256(sum[2], sum[3]);
  int64_t lanes[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), _mm256_xor_si256(low, high));
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

int bandwidth(size_t bytes) {
  void* place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (place == MAP_FAILED) return std::fprintf(stderr, "no memory for %zu bytes\n", bytes), 1;
  char* data = static_cast<char*>(place);
  const auto read = __builtin_cpu_supports("avx512f") ? read512 : read256;
  std::vector<double> rates;
  int64_t seen = 0;
#pragma omp parallel
  {
    const size_t share = bytes / omp_get_num_threads();
    char* mine = data + share * omp_get_thread_num();
    std::memset(mine, 1 + omp_get_thread_num(), share);  // pages exist only once written
  }
  for (int round = 0; round < kRounds; round++) {
    const double begin = now();
#pragma omp parallel reduction(^ : seen)
    {
      const size_t share = bytes / omp_get_num_threads();
      seen ^= read(data + share * omp_get_thread_num(), share);
    }
    rates.push_back(bytes / (now() - begin) / 1e9);
  }
  sink = seen;
  std::printf("{\"threads\": %d, \"buffer_gb\": %.2f, ", omp_get_max_threads(), bytes / 1e9);
  print("read_gb_per_second", rates, "}\n");
  return 0;
}

// Multiplies in 16 independent accumulators for a while; gives multiply-adds done.
__attribute__((target("avx512f,avx512vnni"))) double vnni(double seconds) {
  __m512i sums[16], a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-5);
#pragma GCC unroll 16  // all of them, or the sums live in memory
  for (int i = 0; i < 16; i++) sums[i] = _mm512_set1_epi32(i);
  double macs = 0;
  for (const double end = now() + seconds; now() < end; macs += 4096.0 * 16 * 64)
    for (int repeat = 0; repeat < 4096; repeat++)
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
        asm volatile("" : "+v"(sums[i]));  // or the loop is folded
      }
#pragma GCC unroll 16
  for (int i = 1; i < 16; i++) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  sink = _mm512_reduce_add_epi32(sums[0]);
  return macs;
}

struct alignas(64) TileShapes {
  uint8_t palette = 1, first = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Four tiles of sums from two and two of factors: the arrangement that keeps the unit busy.
__attribute__((target("amx-tile,amx-int8"))) double amx(double seconds) {
  alignas(64) int8_t factor[16 * 64];
  std::memset(factor, 3, sizeof factor);
  // Static: GCC's intrinsic says that it reads 8 bytes, so stores to the rest of a local may vanish.
  static constexpr TileShapes shapes;
  _tile_loadconfig(&shapes);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, factor, 64);
  _tile_loadd(5, factor, 64);
  _tile_loadd(6, factor, 64);
  _tile_loadd(7, factor, 64);
  double macs = 0;
  for (const double end = now() + seconds; now() < end; macs += 1024.0 * 4 * 16 * 16 * 64)
    for (int repeat = 0; repeat < 1024; repeat++) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  alignas(64) int32_t out[16 * 16];
  _tile_stored(0, out, 64);
  sink = out[0];
  _tile_release();
  return macs;
}

// Linux gives a process the AMX registers when it asks.
bool amx_allowed() {
  uint32_t a, b, c, d;
  asm volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  constexpr uint32_t kTile = 1u << 24, kInt8 = 1u << 25;
  if ((d & kTile) == 0 || (d & kInt8) == 0) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

template <typename Work>
std::vector<double> rates(Work work, double seconds) {
  std::vector<double> result;
  for (int round = 0; round < kRounds; round++) {
    double macs = 0;
    const double begin = now();
#pragma omp parallel reduction(+ : macs)
    macs += work(seconds / kRounds);
    result.push_back(macs / (now() - begin) / 1e9);
  }
  return result;
}

int int8(double seconds) {
  const bool tiles = amx_allowed();  // before the threads are made: they inherit it
  std::printf("{\"threads\": %d", omp_get_max_threads());
  if (__builtin_cpu_supports("avx512vnni")) {
    std::printf(", ");
    print("vnni_gmac_per_second", rates(vnni, seconds), "");
  }
  if (tiles) {
    std::printf(", ");
    print("amx_gmac_per_second", rates(amx, seconds), "");
  }
  std::printf("}\n");
  return 0;
}

}  // namespace

int main(int count, char** words) {
  const double number = count == 3 ? std::atof(words[2]) : 0;
  if (number > 0 && std::strcmp(words[1], "bandwidth") == 0) return bandwidth(size_t(number));
  if (number > 0 && std::strcmp(words[1], "int8") == 0) return int8(number);
  std::fprintf(stderr, "usage: limits bandwidth BYTES | int8 SECONDS\n");
  return 2;
}
