// The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, as a program of its own (Python
// under ASan reports Python). Every buffer is a heap block of exactly its size, so that one byte too
// many is seen; every instruction set of this processor must give what the generic code gives, bit for
// bit. Prints the number of comparisons; exits 1 at the first difference.

#include "../../csrc/kernels.cpp"

#include <cstdio>
#include <random>
#include <vector>

namespace {

std::mt19937 generator(1);

// std::vector allocates exactly, and its end is poisoned by AddressSanitizer.
template <typename T>
std::vector<T> exactly(int64_t count) {
  std::vector<T> out;
  out.reserve(count);
  out.resize(count);
  return out;
}

std::vector<uint8_t> random_bytes(int64_t count) {
  auto out = exactly<uint8_t>(count);
  for (uint8_t& x : out) x = static_cast<uint8_t>(generator());
  return out;
}

float uniform(float least, float most) { return std::uniform_real_distribution<float>(least, most)(generator); }

// Floats of a dtype as bytes; `wild` puts zeros, NaN, infinities, huge and tiny numbers among them.
std::vector<uint8_t> random_floats(int64_t count, int32_t dtype, float size, bool wild = false) {
  const float odd[] = {0.0f, -0.0f, NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e-38f, 1e-44f};
  auto out = exactly<uint8_t>(count * (dtype == kFloat32 ? 4 : 2));
  for (int64_t i = 0; i < count; ++i) {
    const float x = wild && generator() % 7 == 0 ? odd[generator() % 9] : uniform(-size, size);
    if (dtype == kFloat32)
      std::memcpy(out.data() + 4 * i, &x, 4);
    else
      reinterpret_cast<uint16_t*>(out.data())[i] = to_bf16(x);
  }
  return out;
}

struct Matrix {
  std::vector<uint8_t> codes, scales;
  int32_t groups;
};

Matrix random_matrix(int64_t outputs, int64_t columns, int64_t group, int32_t bits, bool per_row) {
  const int64_t blocks = (outputs + kBlock - 1) / kBlock, groups = (columns + group - 1) / group;
  const int32_t stored = static_cast<int32_t>(per_row ? 1 : groups);
  return {random_bytes(blocks * kBlock * groups * group * bits / 8),
          random_floats(blocks * kBlock * stored, kBFloat16, 0.1f), stored};
}

bool same(const std::vector<uint8_t>& a, const std::vector<uint8_t>& b, int32_t dtype) {
  const size_t size = dtype == kFloat32 ? 4 : 2;
  for (size_t i = 0; i < a.size(); i += size) {
    if (std::memcmp(&a[i], &b[i], size) == 0) continue;
    uint32_t x = 0, y = 0;  // the bits of a NaN may differ
    std::memcpy(reinterpret_cast<char*>(&x) + 4 - size, &a[i], size);
    std::memcpy(reinterpret_cast<char*>(&y) + 4 - size, &b[i], size);
    if ((x << 1) <= 0xff000000u || (y << 1) <= 0xff000000u) return false;
  }
  return true;
}

int compared = 0;

void run(const Linear& linear) {
  const Call call = {&linear, nullptr};
  baichuan_run(&call, 1);
}

void run(const Attend& attend) {
  const Call call = {nullptr, &attend};
  baichuan_run(&call, 1);
}

template <typename Kind>
void compare(Kind call, int64_t bytes, void* Kind::*out, const char* what) {
  auto expected = exactly<uint8_t>(bytes);
  for (int32_t level = kGeneric; level <= kNeon; ++level) {
    if (!baichuan_available(level)) continue;
    auto y = exactly<uint8_t>(bytes);
    call.*out = level == kGeneric ? expected.data() : y.data();
    call.level = level;
    run(call);
    if (level == kGeneric) continue;
    ++compared;
    if (same(y, expected, call.dtype)) continue;
    std::fprintf(stderr, "%s: level %d differs from the generic code\n", what, level);
    std::exit(1);
  }
}

void check_linear(int64_t rows, int64_t columns, int64_t outputs, int64_t group, int kind) {
  constexpr int32_t kBits[] = {8, 4, 3};
  const int32_t bits = kBits[kind % 3], dtype = kind & 2 ? kBFloat16 : kFloat32;
  const int32_t up_bits = kBits[(kind + 1) % 3];
  const bool per_row = kind & 4, fused = kind & 8, wild = kind & 16;
  const Matrix w = random_matrix(outputs, columns, group, bits, per_row);
  const Matrix up = random_matrix(outputs, columns, group, up_bits, !per_row);
  const auto x = random_floats(rows * columns, dtype, 3.0f, wild);
  const auto norm = random_floats(columns, kFloat32, 2.0f);
  const auto residual = random_floats(rows * outputs, dtype, 2.0f);
  Linear call = {};
  call.x = x.data();
  call.codes = w.codes.data();
  call.scales = reinterpret_cast<const uint16_t*>(w.scales.data());
  call.scale_groups = w.groups;
  if (fused) {
    call.norm = reinterpret_cast<const float*>(norm.data());
    call.up_codes = up.codes.data();
    call.up_scales = reinterpret_cast<const uint16_t*>(up.scales.data());
    call.up_scale_groups = up.groups;
    call.residual = residual.data();
  }
  call.rows = rows;
  call.columns = columns;
  call.outputs = outputs;
  call.group = group;
  call.bits = bits;
  call.up_bits = up_bits;
  call.dtype = dtype;
  call.eps = 1e-6f;
  compare(call, static_cast<int64_t>(residual.size()), &Linear::y, "linear");
}

void check_attend(int64_t heads, int64_t width, const std::vector<int64_t>& held, int64_t each, int32_t dtype,
                  bool alibi) {  // `each` newest rows of every sequence
  constexpr int64_t kPositions = 4, kLayers = 2;  // of a block
  const int64_t rows = static_cast<int64_t>(held.size()) * each, numbers = heads * width;
  const auto packed = random_floats(rows * 3 * numbers, dtype, 2.0f);
  const auto slopes = random_floats(heads, kFloat32, 0.5f);
  const auto angles = random_floats(rows * (width / 2), kFloat32, 1.0f);
  std::vector<std::vector<uint8_t>> blocks;
  std::vector<std::vector<void*>> tables;
  std::vector<void* const*> pointers;
  std::vector<int64_t> counts;
  for (const int64_t count : held) {
    tables.emplace_back();
    for (int64_t first = 0; first < count + each; first += kPositions) {
      blocks.push_back(random_floats(kLayers * 2 * kPositions * numbers, dtype, 2.0f));
      tables.back().push_back(blocks.back().data());
    }
  }
  for (size_t i = 0; i < held.size(); ++i)
    for (int64_t newer = 0; newer < each; ++newer) {
      pointers.push_back(tables[i].data());
      counts.push_back(held[i] + newer);
    }
  const int64_t size = size_of(dtype);
  Attend call = {};
  call.query = packed.data();
  call.key = packed.data() + numbers * size;
  call.value = packed.data() + 2 * numbers * size;
  call.query_stride = call.key_stride = call.value_stride = 3 * numbers;
  call.blocks = pointers.data();
  call.counts = counts.data();
  call.slopes = alibi ? reinterpret_cast<const float*>(slopes.data()) : nullptr;
  if (!alibi && width % 2 == 0) call.cos = call.sin = reinterpret_cast<const float*>(angles.data());
  call.rows = rows;
  call.heads = heads;
  call.width = width;
  call.block = kPositions;
  call.layer = kLayers - 1;
  call.dtype = dtype;
  compare(call, rows * numbers * size, &Attend::out, "attend");
}

}  // namespace

int main() {
  const int64_t many[] = {1, 2, 3, 5, 7, 13, 33, 70}, groups[] = {32, 64, 128, 256};
  const int64_t columns[] = {1, 31, 64, 130, 257}, outputs[] = {1, 15, 16, 17, 33, 50};
  int kind = 0;
  for (const int64_t rows : many)
    for (const int64_t group : groups)
      for (int i = 0; i < 8; ++i, ++kind)
        check_linear(rows, columns[kind % 5], outputs[kind % 6], group, kind % 32);
  check_linear(kMostRows + 1, 65, 33, 64, 1);  // two passes
  for (const int32_t dtype : {kFloat32, kBFloat16})
    for (const int64_t width : {1, 7, 16, 33})
      for (const int64_t heads : {1, 7}) {
        check_attend(heads, width, {0, 1, 3, 4, 31, 100}, 1, dtype, heads > 1);
        check_attend(heads, width, {0, 2, 29}, 7, dtype, heads > 1);
      }
  std::printf("%d comparisons\n", compared);
  return 0;
}
