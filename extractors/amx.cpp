// Convolutions in float32 by a processor's bfloat16 matrix unit (AMX). `extractors/amx.py` builds and calls this.
//
// A float32 number is the sum of three bfloat16 numbers, which keep all its 24 bits. Of the nine products of two such
// sums six are larger than float32's rounding; AMX adds them in float32. (Henry, Tang and Heinecke 2019, "Leveraging
// the bfloat16 Artificial Intelligence Datatype For Higher-Precision Computations".)
//
// A convolution is computed in bands of output rows, small enough for the second-level cache. Cells of the band's input
// are split into parts first and laid out so that 16 neighbouring cells of 32 channels lie in 1 KiB, one tile. Since
// cells follow each other through all columns and rows, borders of zeros included, the cells that a tap meets are the
// same ones from another start on, and no cell is laid out once a tap. What falls on a border is not written.
// With a stride, cells lie apart by their row and column modulo the stride ("phases"), and each tap meets one of these.
// Groups of fewer than 32 channels are taken together, with zeros where a group has no say.
//
// Sums do not depend on a band, a thread or another image: each output adds its products in one order.

#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

namespace {

constexpr long PARTS = 3;                 // bfloat16 numbers in a float32 number
constexpr long PRODUCTS = 6;              // of parts that are computed
constexpr long ROWS = 16, DEPTH = 32;     // of a tile: cells, and channels of each
constexpr long CELL = 2 * DEPTH;          // bytes of a tile's row, and of a line of memory
constexpr long TILE = ROWS * CELL;        // bytes
constexpr long WIDE = 2 * ROWS;           // cells, and outputs, that are taken at a time: four tiles of sums
constexpr long PAIR = 2 * TILE;           // bytes
constexpr long MOST_TAPS = 9;
constexpr long CELLS_AHEAD = ROWS / 2;    // to ask the memory for before they are wanted
constexpr long WEIGHTS_AHEAD = 4 * DEPTH;
constexpr long HUGE_PAGE = 2 << 20;       // bytes
// Bytes that cells, and weights, may take of the second-level cache, which has 2 MiB where there is AMX.
constexpr long ROOM_FOR_CELLS = 650 << 10, ROOM_FOR_WEIGHTS = 220 << 10;

long steps_to(long length, long step) { return (length + step - 1) / step; }

// For memory that nothing was written to yet. New small pages cost more than what is computed into them, and a core
// remembers the addresses of few.
void ask_for_huge_pages(void* from, long bytes) {
  const auto begin = steps_to(reinterpret_cast<uintptr_t>(from), HUGE_PAGE) * HUGE_PAGE;
  const auto end = long(reinterpret_cast<uintptr_t>(from) + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

// Memory that a thread keeps, or null. In huge pages, where the system has any.
struct Buffer {
  char* data = nullptr;
  long size = 0;
  char* of(long wanted) {
    if (wanted > size) {
      std::free(data);
      size = steps_to(wanted, HUGE_PAGE) * HUGE_PAGE;
      data = static_cast<char*>(std::aligned_alloc(HUGE_PAGE, size));
      if (!data) return size = 0, nullptr;
      ask_for_huge_pages(data, size);
    }
    return data;
  }
  ~Buffer() { std::free(data); }
};

// What decides how weights are packed.
struct Channels {
  long in, out, taps;       // of the layer; taps an axis
  long merged = 1, groups;  // groups of the layer that are computed as one, and how many such there are
  long own_in, own_out;     // channels of one
  long blocks, panels;      // of 32 input, and output, channels of one

  Channels(long in, long out, long taps, long of_layer) : in(in), out(out), taps(taps) {
    while (in / of_layer * merged < DEPTH && of_layer % (2 * merged) == 0) merged *= 2;
    groups = of_layer / merged;
    own_in = in / groups, own_out = out / groups;
    blocks = steps_to(own_in, DEPTH), panels = steps_to(own_out, WIDE);
  }
  long step_bytes() const { return taps * taps * PARTS * PAIR; }  // weights of a panel for one block
  long panel_bytes() const { return blocks * step_bytes(); }
};

struct Layer : Channels {
  using Channels::Channels;
  const float *x, *bias, *residual;
  const char* weights;  // packed
  float* y;
  long images, height, width;  // of the input
  long stride, padding, dilation;
  bool relu;
  long high, across;         // of the output
  long wide;                 // cells of one phase in a row, border included
  long reach;                // rows, and columns, of a phase that a tap is away from the first at most
  std::vector<long> phases;  // those that taps meet
  long phase_of[MOST_TAPS], shift[MOST_TAPS];  // of each tap: index into `phases`, and cells from the first on
};

inline __mmask16 first(long count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1u << count) - 1; }

// Each part is the nearest to what the ones before leave, so that the last leaves nothing.
inline void split(__m512 value, __m256i* parts) {
  for (long part = 0; part < PARTS; part++) {
    parts[part] = (__m256i)_mm512_cvtneps_pbh(value);
    const __m512i back = _mm512_slli_epi32(_mm512_cvtepu16_epi32(parts[part]), 16);
    value = _mm512_sub_ps(value, _mm512_castsi512_ps(back));
  }
}

inline __m512i joined(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }

// Compilers do not know that the instructions of tiles read and write memory.
inline void settle() { asm volatile("" ::: "memory"); }

inline void fetch(const void* from) { _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0); }

// 16 x 16 numbers of 32 bits.
void transpose(__m512i* rows) {
  __m512i half[16];
  for (int i = 0; i < 16; i += 2) {
    half[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    half[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; j++) {
      rows[i + 2 * j] = _mm512_unpacklo_epi64(half[i + j], half[i + 2 + j]);
      rows[i + 2 * j + 1] = _mm512_unpackhi_epi64(half[i + j], half[i + 2 + j]);
    }
  }
  for (int i = 0; i < 4; i++) {
    for (int j = 0; j < 2; j++) {
      half[8 * j + i] = _mm512_shuffle_i32x4(rows[8 * j + i], rows[8 * j + i + 4], 0x88);
      half[8 * j + i + 4] = _mm512_shuffle_i32x4(rows[8 * j + i], rows[8 * j + i + 4], 0xdd);
    }
  }
  for (int i = 0; i < 8; i++) {
    rows[i] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(half[i], half[i + 8], 0xdd);
  }
}

// 32 weights of one output from an input channel of its group on, split; zero where another of the merged groups is.
void split_weights(const Channels& l, const float* of_layer, long group, long output, long tap, long channel,
                   __m256i low[], __m256i high[]) {
  const long inputs = l.own_in / l.merged, outputs = l.own_out / l.merged, begin = output / outputs * inputs;
  const float* weights = of_layer + ((group * l.own_out + output) * l.taps * l.taps + tap) * inputs;
  const long from = std::max(begin, channel), end = std::min(begin + inputs, channel + DEPTH);
  if (end - from == DEPTH) {
    const float* here = weights + channel - begin;
    fetch(here + WEIGHTS_AHEAD), fetch(here + WEIGHTS_AHEAD + 16);
    split(_mm512_loadu_ps(here), low);
    split(_mm512_loadu_ps(here + 16), high);
    return;
  }
  alignas(64) float row[DEPTH] = {};
  if (from < end) std::memcpy(row + from - channel, weights + from - begin, (end - from) * sizeof(float));
  split(_mm512_load_ps(row), low);
  split(_mm512_load_ps(row + 16), high);
}

// A panel of 32 outputs, as AMX wants its second factor: [block][tap][part][16 outputs, twice][16 pairs of channels].
void pack(const Channels& l, const float* weights, long group, long panel, char* to) {
  for (long block = 0; block < l.blocks; block++)
    for (long tap = 0; tap < l.taps * l.taps; tap++, to += PARTS * PAIR)
      for (long half = 0; half < 2; half++) {
        __m512i rows[PARTS][ROWS];
        for (long i = 0; i < ROWS; i++) {
          const long output = panel * WIDE + half * ROWS + i;
          __m256i low[PARTS] = {}, high[PARTS] = {};
          if (output < l.own_out) split_weights(l, weights, group, output, tap, block * DEPTH, low, high);
          for (long part = 0; part < PARTS; part++) rows[part][i] = joined(low[part], high[part]);
        }
        for (long part = 0; part < PARTS; part++) {
          transpose(rows[part]);
          for (long i = 0; i < ROWS; i++) _mm512_store_si512(to + part * PAIR + half * TILE + i * CELL, rows[part][i]);
        }
      }
}

// One row of cells of a phase, all blocks from `begin` to `end`.
void lay_out_row(const Layer& l, const float* row, long column, long begin, long end, long plane, char* to) {
  const auto inside = [&](long cell) { return cell * l.stride + column >= 0 && cell * l.stride + column < l.width; };
  for (long cell = 0; cell < l.wide;) {
    const long from = cell;
    const bool kept = row && inside(from);
    while (cell < l.wide && cell < from + CELLS_AHEAD && (row && inside(cell)) == kept) cell++;
    for (long block = begin; block < end; block++) {
      char* cells = to + (block - begin) * PARTS * plane + from * CELL;
      if (!kept) {
        for (long part = 0; part < PARTS; part++) std::memset(cells + part * plane, 0, (cell - from) * CELL);
        continue;
      }
      const long in_group = block % l.blocks * DEPTH, left = l.own_in - in_group;
      const __mmask16 lower = first(left), upper = first(left - 16);
      const float* x = row + (from * l.stride + column) * l.in + block / l.blocks * l.own_in + in_group;
      for (long i = from; i < cell; i++, x += l.stride * l.in, cells += CELL) {
        fetch(x + CELLS_AHEAD * l.stride * l.in);
        fetch(x + CELLS_AHEAD * l.stride * l.in + 16);
        __m256i low[PARTS], high[PARTS];
        split(_mm512_maskz_loadu_ps(lower, x), low);
        split(_mm512_maskz_loadu_ps(upper, x + 16), high);
        for (long part = 0; part < PARTS; part++)
          _mm512_store_si512(cells + part * plane, joined(low[part], high[part]));
      }
    }
  }
}

// What output rows from `top` to `bottom` read, of blocks `begin` to `end`: [block][part][phase][place][32 channels].
void lay_out(const Layer& l, long image, long begin, long end, long top, long bottom, long places, char* to) {
  const long phases = l.phases.size(), plane = phases * places * CELL, rows = bottom - top + l.reach;
  for (long phase = 0; phase < phases; phase++) {
    const long down = l.phases[phase] / l.stride - l.padding, column = l.phases[phase] % l.stride - l.padding;
    char* of_phase = to + phase * places * CELL;
    for (long row = 0; row < rows; row++) {
      const long y = (top + row) * l.stride + down;
      const float* cells = y >= 0 && y < l.height ? l.x + (image * l.height + y) * l.width * l.in : nullptr;
      lay_out_row(l, cells, column, begin, end, plane, of_phase + row * l.wide * CELL);
    }
    for (long each = 0; each < (end - begin) * PARTS; each++)
      std::memset(of_phase + each * plane + rows * l.wide * CELL, 0, (places - rows * l.wide) * CELL);
  }
}

// Where 32 x 32 sums belong.
struct Target {
  long image, group, panel;
  long top, bottom;  // rows of the band
  long from;         // the first of 32 cells of the band
  bool begun, last;  // sums of earlier blocks are there; none will follow
};

// Takes sums from tiles 0 to 3 and writes them while the next ones are computed, as memory is slower than AMX is.
class Writer {
  alignas(64) float sums[2][2][ROWS][ROWS];
  const Layer& l;
  Target to{};
  long cell = WIDE, row = 0, column = 0;  // the next to write
  long channel = 0, left = 0;             // the first of the panel, and how many there are from it on
  const float* residual = nullptr;
  float least = 0;
  // Full lines of 64 bytes go past the caches, which would read them first, and are not asked for them soon.
  bool past = false;

 public:
  explicit Writer(const Layer& layer) : l(layer) {}

  void take(const Target& target) {
    write(WIDE);
    _tile_stored(0, sums[0][0], CELL);
    _tile_stored(1, sums[0][1], CELL);
    _tile_stored(2, sums[1][0], CELL);
    _tile_stored(3, sums[1][1], CELL);
    settle();
    to = target, cell = 0, row = to.top + to.from / l.wide, column = to.from % l.wide;
    channel = to.group * l.own_out + to.panel * WIDE, left = l.own_out - to.panel * WIDE;
    residual = to.last ? l.residual : nullptr;
    least = to.last && l.relu ? 0.0f : -__builtin_inff();
    past = to.last && l.out % 16 == 0 && channel % 16 == 0 && reinterpret_cast<uintptr_t>(l.y) % 64 == 0;
  }

  // The next cells, as many as there are.
  inline void write(long count) {
    for (; count > 0 && cell < WIDE && row < to.bottom; count--, cell++) {
      if (column < l.across) write_cell();
      if (++column == l.wide) column = 0, row++;
    }
  }

 private:
  inline void write_cell() {
    for (long half = 0; half < 2; half++) {
      const long at = ((to.image * l.high + row) * l.across + column) * l.out + channel + 16 * half;
      const __mmask16 mask = first(left - 16 * half);
      __m512 sum = _mm512_load_ps(sums[cell / ROWS][half][cell % ROWS]);
      if (to.begun) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, l.y + at));
      if (to.last && l.bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, l.bias + channel + 16 * half));
      if (residual) {
        fetch(residual + at + CELLS_AHEAD * l.out);
        sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, residual + at));
      }
      sum = _mm512_max_ps(_mm512_set1_ps(least), sum);  // a NaN stays: beside one the second is returned
      if (past && mask == 0xffff)
        _mm512_stream_ps(l.y + at, sum);
      else
        _mm512_mask_storeu_ps(l.y + at, mask, sum);
    }
  }
};

// What will be read next and is asked of the memory meanwhile, some lines of 64 bytes a step.
struct Ahead {
  const char* at;
  long lines;
  inline void ask() {
    for (long i = 0; i < lines; i++, at += CELL) _mm_prefetch(at, _MM_HINT_T1);
  }
};

// Sums of 32 cells by 32 outputs, into tiles 0 to 3.
inline void multiply(const char* cells, const char* weights, long blocks, long taps, const long* shifts, long plane,
                     Ahead next_weights, Ahead next_cells, Writer& writer) {
  settle();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  const auto product = [&] {
    next_weights.ask();
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  };
  const auto take_cells = [](const char* from) {
    _tile_loadd(4, from, CELL);
    _tile_loadd(5, from + TILE, CELL);
  };
  const auto take_weights = [](const char* from) {
    _tile_loadd(6, from, CELL);
    _tile_loadd(7, from + TILE, CELL);
  };
  const long to_write = steps_to(WIDE, blocks * taps);
  for (long block = 0; block < blocks; block++, cells += PARTS * plane)
    for (long tap = 0; tap < taps; tap++, weights += PARTS * PAIR) {
      const char* here = cells + shifts[tap];
      take_cells(here), take_weights(weights + 2 * PAIR), product();
      take_weights(weights + PAIR), product();
      take_cells(here + plane), product();
      writer.write(to_write);
      next_cells.ask();
      take_weights(weights), product();
      take_cells(here), product();
      take_cells(here + 2 * plane), product();
    }
}

// AMX set up for full tiles while it lives. What was set up before, by oneDNN, is so again after it.
class Tiles {
  struct alignas(64) Shape {
    uint8_t palette = 0, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } before;

 public:
  Tiles() {
    _tile_storeconfig(&before);
    settle();
    Shape full;
    full.palette = 1;
    std::fill(full.bytes, full.bytes + 8, CELL);
    std::fill(full.rows, full.rows + 8, ROWS);
    settle();
    _tile_loadconfig(&full);
  }
  ~Tiles() {
    if (before.palette)
      _tile_loadconfig(&before);
    else
      _tile_release();
  }
};

// `work` by so many threads at once, this one among them.
template <typename Work>
void in_threads(int threads, const Work& work) {
  std::vector<std::thread> others;
  try {
    for (int i = 1; i < threads; i++) others.emplace_back(work);
  } catch (const std::system_error&) {  // the system gives no more threads: those that are there do it
  }
  work();
  for (auto& each : others) each.join();
}

// False where there is no memory for it.
bool convolve(const Layer& l, int threads) {
  // Together: blocks of a group, or groups, whose weights for 32 outputs, or for all, leave room for cells.
  const long blocks = std::clamp(ROOM_FOR_WEIGHTS / l.step_bytes(), 1L, l.blocks);
  long together = blocks < l.blocks ? 1 : std::clamp(ROOM_FOR_WEIGHTS / (l.panels * l.panel_bytes()), 1L, l.groups);
  const long of_block = PARTS * long(l.phases.size()) * CELL;  // of a place
  const auto rows_that_fit = [&] {
    const long of_place = blocks * together * of_block;
    const long of_outputs = l.groups == 1 ? 0 : together * l.own_out * long(sizeof(float));  // written piece by piece
    return (ROOM_FOR_CELLS - l.reach * (l.wide + 1) * of_place) / ((of_place + of_outputs) * l.wide);
  };
  // Rows that a band shares with the next are laid out twice: no more than half of them may be such.
  while (together > 1 && rows_that_fit() < 2 * l.reach) together /= 2;
  const long of_place = blocks * together * of_block;
  long rows = std::clamp(rows_that_fit(), 1L, l.high);
  if (l.wide == 1) rows = steps_to(rows, WIDE) * WIDE;
  const long bands = steps_to(l.high, rows), chunks = steps_to(l.groups, together);

  std::atomic<long> next_band{0};
  std::atomic<bool> enough{true};
  const auto compute_bands = [&] {
    thread_local Buffer buffer;
    const Tiles tiles;
    Writer writer(l);
    for (long each; (each = next_band++) < l.images * chunks * bands;) {
      const long top = each % bands * rows, bottom = std::min(l.high, top + rows), image = each / bands / chunks;
      const long group = each / bands % chunks * together, last_group = std::min(l.groups, group + together);
      const long count = (bottom - top) * l.wide, places = steps_to(count, WIDE) * WIDE + l.reach * (l.wide + 1);
      const long plane = long(l.phases.size()) * places * CELL;
      char* const cells = buffer.of(places * of_place);
      if (!cells) {
        enough = false;
        break;
      }
      long shifts[MOST_TAPS];
      for (long tap = 0; tap < l.taps * l.taps; tap++) shifts[tap] = (l.phase_of[tap] * places + l.shift[tap]) * CELL;
      for (long block = 0; block < l.blocks; block += blocks) {
        const long here = std::min(blocks, l.blocks - block), begin = group * l.blocks + block;
        const bool last = block + here == l.blocks;
        lay_out(l, image, begin, together == 1 ? begin + here : last_group * l.blocks, top, bottom, places, cells);
        const long fitting = std::clamp(ROOM_FOR_WEIGHTS / (here * l.step_bytes()), 1L, l.panels);
        const long at_once = l.groups == 1 ? fitting : l.panels;
        const long pairs = steps_to(count, WIDE), steps = here * l.taps * l.taps;
        // Products in which the weights of a panel must come, and steps in which the cells of the next band must.
        const long weight_lines = at_once < l.panels ? steps_to(PARTS * PAIR / CELL, PRODUCTS * pairs) : 0;
        const long row_lines = l.stride * l.width * l.in * long(sizeof(float)) / CELL;
        const long band_lines = l.groups == 1 && last ? (bottom - top) * row_lines : 0;
        const long cell_lines = steps_to(band_lines, l.panels * pairs * steps);
        const char* const next_band = reinterpret_cast<const char*>(l.x) + (image * l.high + bottom) * row_lines * CELL;
        for (long first_panel = 0; first_panel < l.panels; first_panel += at_once)
          for (long pair = 0; pair < pairs; pair++)
            for (long g = group; g < last_group; g++)
              for (long panel = first_panel; panel < std::min(l.panels, first_panel + at_once); panel++) {
                const char* of_panel = l.weights + (g * l.panels + panel) * l.panel_bytes() + block * l.step_bytes();
                const char* next_panel = of_panel + at_once * l.panel_bytes();
                const Ahead next_weights{next_panel + pair * steps * PRODUCTS * weight_lines * CELL, weight_lines};
                const Ahead next_cells{next_band + (panel * pairs + pair) * steps * cell_lines * CELL, cell_lines};
                multiply(cells + (g - group) * l.blocks * PARTS * plane + pair * PAIR, of_panel, here, l.taps * l.taps,
                         shifts, plane, next_weights, next_cells, writer);
                writer.take({image, g, panel, top, bottom, pair * WIDE, block > 0, last});
              }
      }
    }
    writer.write(WIDE);
    _mm_sfence();  // what went past the caches is there for whoever reads it next
  };
  in_threads(threads, compute_bands);
  return enough;
}

}  // namespace

// Asks the system for AMX, for all threads of this process; whether it may be used.
extern "C" int triptych_amx_allowed() {
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

// Bytes of a layer's packed weights.
extern "C" long triptych_amx_packed(long in, long out, long taps, long groups) {
  const Channels l(in, out, taps, groups);
  return l.groups * l.panels * l.panel_bytes();
}

// Packs weight (out, taps, taps, in / groups), float32 without gaps, for convolutions; `packed` begins at a line.
extern "C" void triptych_amx_pack(const float* weight, char* packed, long in, long out, long taps, long groups,
                                  int threads) {
  const Channels l(in, out, taps, groups);
  ask_for_huge_pages(packed, l.groups * l.panels * l.panel_bytes());
  std::atomic<long> next{0};
  in_threads(threads, [&] {
    for (long each; (each = next++) < l.groups * l.panels;)
      pack(l, weight, each / l.panels, each % l.panels, packed + each * l.panel_bytes());
  });
}

// y = conv(x, weight) + bias + residual, through a ReLU where asked; `bias` and `residual` may be null.
// x (images, height, width, in), residual and y (images, high, across, out), all float32 without gaps; weights as
// `triptych_amx_pack` leaves them. Returns 0, or 1 where there is no memory for it.
extern "C" int triptych_amx_convolve(const float* x, const char* packed, const float* bias, const float* residual,
                                     float* y, long images, long height, long width, long in, long out, long taps,
                                     long stride, long padding, long dilation, long groups, int relu, int threads) {
  if (taps == 1 && stride == 1 && padding == 0) height *= images * width, width = images = 1;
  Layer l(in, out, taps, groups);
  l.x = x, l.weights = packed, l.bias = bias, l.residual = residual, l.y = y;
  l.images = images, l.height = height, l.width = width;
  l.stride = stride, l.padding = padding, l.dilation = dilation;
  l.relu = relu;
  const long beyond = dilation * (taps - 1);
  l.high = (height + 2 * padding - beyond - 1) / stride + 1;
  l.across = (width + 2 * padding - beyond - 1) / stride + 1;
  l.wide = steps_to(width + 2 * padding, stride);
  l.reach = beyond / stride;
  for (long tap = 0; tap < taps * taps; tap++) {
    const long down = tap / taps * dilation, right = tap % taps * dilation;
    const long phase = down % stride * stride + right % stride;
    const auto found = std::find(l.phases.begin(), l.phases.end(), phase);
    l.phase_of[tap] = found - l.phases.begin();
    if (found == l.phases.end()) l.phases.push_back(phase);
    l.shift[tap] = down / stride * l.wide + right / stride;
  }
  return convolve(l, threads) ? 0 : 1;
}
