// A rebuild of the store, page by page: which rows were drawn, where rows and children go.
#include <cstring>
#include <vector>

#include "stir.h"

using namespace clm;

namespace {

constexpr float kLarge = 4.f;  // times the median radius: such a row would inflate the box of whatever page it is in

// A row's geometry as it is after step - 1; the store is not changed.
void exact_geometry(const StoreView& s, const AdamStep* a, int64_t row, float* geometry) {
    std::memcpy(geometry, s.geometry + row * kGeometry, sizeof(float) * kGeometry);
    const int stamp = a != nullptr && s.m_geometry != nullptr ? s.stamp[row] : 0;
    if (stamp == 0 || stamp == a->step - 1) return;
    with_moments(s, [&](auto type) {
        catch_up(*a, stamp, a->step - 1, Moments<decltype(type)>(s, row), geometry, static_cast<float*>(nullptr), 0);
    });
}

// ---- random numbers: clm/store/identity.py says what they are ----

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;

uint64_t mixed(uint64_t x) {
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
    x = (x ^ x >> 27) * 0x94D049BB133111EBu;
    return x ^ x >> 31;
}

void normals(uint64_t key, uint64_t seed, uint64_t image, double out[3]) {
    uint64_t state = mixed(key + kGolden);
    for (uint64_t number : {uint64_t(2), seed, image}) state = mixed(state + (number + 1) * kGolden);
    double uniform[4];
    for (uint64_t k = 0; k < 4; ++k) uniform[k] = double(mixed(state + (k + 1) * kGolden) >> 11) * 0x1p-53;
    constexpr double two_pi = 6.283185307179586;
    const double near = std::sqrt(-2.0 * std::log1p(-uniform[0])), far = std::sqrt(-2.0 * std::log1p(-uniform[2]));
    out[0] = near * std::cos(two_pi * uniform[1]);
    out[1] = near * std::sin(two_pi * uniform[1]);
    out[2] = far * std::cos(two_pi * uniform[3]);
}

// ---- places ----

// Floats as integers in their order; NaN beyond all others, or before them.
uint32_t ordered(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

struct Key {
    uint64_t value;  // large, then the centre along an axis
    int32_t index;
    bool operator<(const Key& other) const { return value != other.value ? value < other.value : index < other.index; }
};

// From this radius on a row is much larger than the others of entries [n].
float large_radius(const float* entries, int64_t n) {
    std::vector<uint32_t> sorted(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) sorted[size_t(i)] = ordered(entries[4 * i + 3]);
    std::nth_element(sorted.begin(), sorted.begin() + n / 2, sorted.end());
    float median;
    uint32_t bits = sorted[size_t(n / 2)];
    bits = bits & 0x80000000u ? bits & 0x7FFFFFFFu : ~bits;
    std::memcpy(&median, &bits, sizeof median);
    return kLarge * median;
}

// Cuts entries [n] into `count` parts along the longest axis of their centres, again and again: order [n] lists part after
// part, each ascending; all but large rows near each other. Parts have the sizes that `clm.store.pages.part_sizes` says.
void cut(const float* entries, int64_t n, int64_t count, int32_t* order) {
    for (int64_t i = 0; i < n; ++i) order[i] = int32_t(i);
    if (count < 2 || n == 0) return;
    const float limit = large_radius(entries, n);
    struct Range {
        int64_t begin, end, parts;
    };
    std::vector<Key> keys;
    std::vector<Range> ranges{{0, n, count}};
    while (!ranges.empty()) {
        const auto [begin, end, parts] = ranges.back();
        ranges.pop_back();
        if (parts < 2) continue;
        const int64_t rows = end - begin, lower = (parts + 1) / 2, first = (rows * lower + parts - 1) / parts;
        int axis = 0;
        float widest = -1.f;
        for (int a = 0; a < 3; ++a) {
            float low = INFINITY, high = -INFINITY;
            for (int64_t i = begin; i < end; ++i) {
                low = std::min(low, entries[4 * int64_t(order[i]) + a]);
                high = std::max(high, entries[4 * int64_t(order[i]) + a]);
            }
            if (high - low > widest) widest = high - low, axis = a;
        }
        keys.resize(size_t(rows));
        for (int64_t i = 0; i < rows; ++i) {
            const int32_t row = order[begin + i];
            const uint64_t large = entries[4 * int64_t(row) + 3] > limit;
            keys[size_t(i)] = {large << 32 | ordered(entries[4 * int64_t(row) + axis]), row};
        }
        std::nth_element(keys.begin(), keys.begin() + first, keys.end());
        for (int64_t i = 0; i < rows; ++i) order[begin + i] = keys[size_t(i)].index;
        std::sort(order + begin, order + begin + first);
        std::sort(order + begin + first, order + end);
        ranges.push_back({begin + first, end, parts - lower});
        ranges.push_back({begin, begin + first, lower});
    }
}

// What some pages give to others, as `clm_plan_growth` takes it.
struct Gifts {
    const int32_t *how, *rows;  // of each gift
    const int64_t* place;       // where its places begin in `places`
    const int32_t* places;
};

constexpr int32_t kCut = 6;  // how: a part of the page that is cut; others: 2 axis + (towards larger centres)

// The rows of entries [n] that a page gives away: order [sum of rows] lists gift after gift, each ascending. What is nearest
// to the receiver goes, large rows last.
void choose(const float* entries, int64_t n, const int32_t* how, const int32_t* rows, int64_t gifts, std::vector<int32_t>& order) {
    std::vector<int32_t> parts(static_cast<size_t>(n));
    if (how[0] == kCut) {
        cut(entries, n, gifts + 1, parts.data());
        int64_t given = 0;
        for (int64_t g = 0; g < gifts; ++g) given += rows[g];
        order.assign(parts.end() - given, parts.end());
        return;
    }
    const float limit = large_radius(entries, n);
    std::vector<Key> keys(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) keys[size_t(i)].index = int32_t(i);
    for (int64_t g = 0; g < gifts; ++g) {
        const int axis = how[g] / 2;
        for (Key& key : keys) {
            const float* entry = entries + 4 * int64_t(key.index);
            const uint32_t along = ordered(entry[axis]);
            key.value = uint64_t(entry[3] > limit) << 32 | (how[g] & 1 ? ~along : along);
        }
        const auto end = keys.begin() + rows[g];
        if (end < keys.end()) std::nth_element(keys.begin(), end, keys.end());
        const size_t first = order.size();
        for (auto key = keys.begin(); key < end; ++key) order.push_back(key->index);
        std::sort(order.begin() + int64_t(first), order.end());
        keys.erase(keys.begin(), end);
    }
}

struct Plan {
    const float *entries, *children;
    int64_t page_rows;
    int32_t *child_rows, *source, *target;
};

// One page: rows `leave` [gone] go, children first .. first + come come, gifts [gifts] are given away, and `taken` rows are
// taken, whose places are written to `room`. Writes moves from `at` on and returns behind the last.
int64_t plan_page(const Plan& plan, int64_t page, const int32_t* leave, int64_t gone, int64_t fill, int64_t first, int64_t come,
                  const Gifts& given, int64_t gift, int64_t gifts, int64_t taken, int32_t* room, int64_t at) {
    const int64_t base = page * plan.page_rows;
    int64_t size = fill - gone + come + taken;
    for (int64_t g = gift; g < gift + gifts; ++g) size -= given.rows[g];
    std::vector<uint8_t> held(size_t(std::max(fill, size)), 0);  // places whose rows stay in the page
    std::memset(held.data(), 1, size_t(fill));
    for (int64_t i = 0; i < gone; ++i) held[size_t(leave[i] - base)] = 0;
    std::vector<uint8_t> away(size_t(come), 0);  // children that go to other pages
    if (gifts) {
        std::vector<int32_t> stay, order;
        for (int64_t place = 0; place < fill; ++place)
            if (held[size_t(place)]) stay.push_back(int32_t(place));
        const int64_t rows = int64_t(stay.size()), n = rows + come;
        std::vector<float> entries(size_t(n) * 4);
        for (int64_t i = 0; i < rows; ++i) std::memcpy(&entries[size_t(i) * 4], plan.entries + (base + stay[size_t(i)]) * 4, 16);
        for (int64_t c = 0; c < come; ++c) plain_entry(plan.children + (first + c) * kGeometry, &entries[size_t(rows + c) * 4]);
        choose(entries.data(), n, given.how + gift, given.rows + gift, gifts, order);
        size_t i = 0;
        for (int64_t g = gift; g < gift + gifts; ++g)
            for (int64_t k = 0; k < given.rows[g]; ++k) {
                const int32_t to = given.places[given.place[g] + k], from = order[i++];
                if (from >= rows) {
                    plan.child_rows[first + from - rows] = to;
                    away[size_t(from - rows)] = 1;
                } else {
                    held[size_t(stay[size_t(from)])] = 0;
                    plan.source[at] = int32_t(base + stay[size_t(from)]);
                    plan.target[at++] = to;
                }
            }
    }
    // Children fill holes, then rows beyond the new end do; the holes that are left are for what other pages give.
    int64_t hole = 0;
    auto next_hole = [&] {
        while (held[size_t(hole)]) ++hole;
        return int32_t(base + hole++);
    };
    for (int64_t c = 0; c < come; ++c)
        if (!away[size_t(c)]) plan.child_rows[first + c] = next_hole();
    for (int64_t beyond = size; beyond < fill; ++beyond)
        if (held[size_t(beyond)]) {
            plan.source[at] = int32_t(base + beyond);
            plan.target[at++] = next_hole();
        }
    for (int64_t k = 0; k < taken; ++k) room[k] = next_hole();
    return at;
}

}  // namespace

// counts[k] = drawn rows of page pages[k], which lies in frame frames[k] of statistics [places, kStatistics]; fill [pages] i32: of all.
CLM_API void clm_count_drawn(const float* statistics, const int32_t* fill, int64_t page_rows, const int64_t* pages,
                             const int64_t* frames, int64_t count, int64_t* counts) {
    clm::parallel(count, [&](int64_t k, int) {
        int64_t drawn = 0;
        for (int64_t at = frames[k] * page_rows, end = at + fill[pages[k]]; at < end; ++at) drawn += statistics[kStatistics * at] > 0.f;
        counts[k] = drawn;
    });
}

// Drawn rows of pages, those of pages[k] from starts[k] on: ids, mean screen gradient, largest log-scale and logit of opacity
// as they are after step - 1, and keys, of which store_keys has those of all places; and sums over the views that drew them of the
// pixels that they explain, and of their squares.
CLM_API void clm_see_drawn(const StoreView* s, const AdamStep* a, const float* statistics, const uint64_t* store_keys,
                           const int32_t* fill, int64_t page_rows, const int64_t* pages, const int64_t* frames, int64_t count,
                           const int64_t* starts, int32_t* rows, float* gradient, float* log_scale, float* logit_opacity,
                           uint64_t* keys, float* pixels, float* squares) {
    clm::parallel(count, [&](int64_t k, int) {
        int64_t at = starts[k], row = pages[k] * page_rows;
        for (int64_t place = frames[k] * page_rows, end = place + fill[pages[k]]; place < end; ++place, ++row) {
            const float* seen = statistics + kStatistics * place;
            if (!(seen[0] > 0.f)) continue;
            float geometry[kGeometry], largest = -INFINITY;
            exact_geometry(*s, a, place, geometry);
            for (int i = 0; i < 3; ++i) {
                const float scale = geometry[kLogScales + i];
                if (scale > largest || scale != scale) largest = scale;
            }
            rows[at] = int32_t(row);
            gradient[at] = seen[1] / seen[0];
            pixels[at] = seen[2];
            squares[at] = seen[3];
            log_scale[at] = largest;
            keys[at] = store_keys[place];
            logit_opacity[at++] = geometry[kOpacity];
        }
    });
}

// Live rows of pages, those of pages[k] from starts[k] on: ids, logit of opacity as it is after step - 1, and keys.
CLM_API void clm_see_opacity(const StoreView* s, const AdamStep* a, const uint64_t* store_keys, const int32_t* fill,
                             int64_t page_rows, const int64_t* pages, const int64_t* frames, int64_t count, const int64_t* starts,
                             int32_t* rows, float* logit_opacity, uint64_t* keys) {
    clm::parallel(count, [&](int64_t k, int) {
        int64_t at = starts[k], row = pages[k] * page_rows;
        for (int64_t place = frames[k] * page_rows, end = place + fill[pages[k]]; place < end; ++place, ++row, ++at) {
            float geometry[kGeometry];
            exact_geometry(*s, a, place, geometry);
            rows[at] = int32_t(row);
            keys[at] = store_keys[place];
            logit_opacity[at] = geometry[kOpacity];
        }
    });
}

// Three standard normal numbers [count, 3] for each key.
CLM_API void clm_normals(const uint64_t* keys, int64_t count, uint64_t seed, uint64_t image, double* out) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) normals(keys[i], seed, image, out + 3 * i);
    });
}

// How entries [n] are cut (see above).
CLM_API void clm_cut(const float* entries, int64_t n, int64_t count, int32_t* order) { cut(entries, n, count, order); }

// Where rows go when pages [count] change. Of page k: rows leave[leave_at[k] .. leave_at[k + 1]) go, children [come_at[k] ..
// come_at[k + 1]) come. Gifts, those of page k from gift_at[k] on: how (see kCut), rows, and where their places begin in
// `places`; page k takes taken[k] rows, whose places, from take_at[k] on, are written there (those in pages that are not listed
// are there already). No page both gives and takes. Moves are written from move_at[k] on; moves[k]: how many. children [C, 12]:
// geometry; child_rows [C]: their places.
CLM_API void clm_plan_growth(const int32_t* pages, const int32_t* fill, int64_t count, int64_t page_rows, const int32_t* leave,
                             const int64_t* leave_at, const int64_t* come_at, const int64_t* gift_at, const int32_t* how,
                             const int32_t* gift_rows, const int64_t* gift_place, const int32_t* taken, const int64_t* take_at,
                             int32_t* places, const int64_t* move_at, const float* entries, const float* children,
                             int32_t* child_rows, int32_t* source, int32_t* target, int64_t* moves) {
    const Plan plan{entries, children, page_rows, child_rows, source, target};
    const Gifts given{how, gift_rows, gift_place, places};
    for (bool giving : {false, true})  // who gives knows where to
        clm::parallel(count, [&](int64_t k, int) {
            const int64_t gifts = gift_at[k + 1] - gift_at[k];
            if ((gifts > 0) != giving) return;
            moves[k] = plan_page(plan, pages[k], leave + leave_at[k], leave_at[k + 1] - leave_at[k], fill[k], come_at[k],
                                 come_at[k + 1] - come_at[k], given, gift_at[k], gifts, taken[k], places + take_at[k],
                                 move_at[k]) - move_at[k];
        });
}

// New rows: geometry [count, 12] and colour [count, 48] of rows [count] at places [count], with their cull entries; keys,
// statistics and written are null in a store that only renders. All else becomes zero, where a page has held more rows than
// written[page] places: the rest is zero.
CLM_API void clm_put_rows(const StoreView* s, const int32_t* rows, const int32_t* places, int64_t count, const float* geometry,
                          const float* colour,
                          const uint64_t* keys, const int32_t* written, int64_t page_rows, uint64_t* store_keys,
                          float* statistics, float* entries) {
    over_rows(count, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t row = rows[i], place = places[i];
            float* g = s->geometry + place * kGeometry;
            std::memcpy(g, geometry + i * kGeometry, sizeof(float) * kGeometry);
            std::memcpy(s->colour + place * kColour, colour + i * kColour, sizeof(float) * kColour);
            plain_entry(g, entries + row * 4);
            if (!store_keys) continue;
            const uint32_t bits = uint32_t(keys[i]);
            const uint32_t identity = (bits >> 30 & 1u) << 31 | ((bits >> 23 & 0x7Fu) + 64u) << 23 | (bits & 0x7FFFFFu);
            std::memcpy(g + kIdentity, &identity, sizeof identity);
            store_keys[place] = keys[i];
            if (row % page_rows >= written[row / page_rows]) continue;
            with_moments(*s, [&](auto type) {
                const Moments<decltype(type)> at(*s, place);
                std::memset(static_cast<void*>(at.m_geometry), 0, sizeof type * kGeometry);
                std::memset(static_cast<void*>(at.v_geometry), 0, sizeof type * kGeometry);
                std::memset(static_cast<void*>(at.m_colour), 0, sizeof type * kColour);
                std::memset(static_cast<void*>(at.v_colour), 0, sizeof type * kColour);
            });
            s->stamp[place] = 0;
            for (int k = 0; k < kStatistics; ++k) statistics[kStatistics * place + k] = 0.f;
        }
    });
}
