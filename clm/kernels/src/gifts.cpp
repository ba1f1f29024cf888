// Which pages give rows to which others when some overflow or are rather empty; clm/store/gifts.py says by which rules.
#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"

namespace {

constexpr double kFull = 0.9;          // of pages, at most, after rows were given: the next rebuild finds room
constexpr double kRatherEmpty = 0.6;   // of a page, at most: below the two thirds of one that gave, so nothing goes to and fro
constexpr double kLarger = 1.15;       // diagonal of a taker's box, at most, in diagonals that it may have
constexpr float kAlike = 4.f;          // ratio of the largest radii of pages
constexpr int64_t kLookedAt = 8;       // pages before and behind one along the curve
constexpr int64_t kInPairs = 6;        // of those, the emptiest, that are looked at in pairs
constexpr int32_t kCut = 6;            // as in grow.cpp

struct Box {
    double low[3], high[3];
};

Box box_of(const float* bounds) {
    Box box;
    for (int a = 0; a < 3; ++a) box.low[a] = bounds[a], box.high[a] = bounds[4 + a];
    return box;
}

double diagonal(const Box& one, const Box& other) {
    double sum = 0;
    for (int a = 0; a < 3; ++a) {
        const double side = std::max(one.high[a], other.high[a]) - std::min(one.low[a], other.low[a]);
        sum += side * side;
    }
    return std::sqrt(sum);
}

// The share of rows that lies farthest up, or down, an axis, if rows are spread evenly.
Box slab(Box box, int axis, bool up, double share) {
    const double deep = share * (box.high[axis] - box.low[axis]);
    if (up) box.low[axis] = box.high[axis] - deep;
    else box.high[axis] = box.low[axis] + deep;
    return box;
}

// The way found, and how large the taker's box becomes by it: in diagonals of the larger of both boxes, and where a page takes
// all that another one has, of a box that its rows would fill as sparsely.
struct Way {
    double larger = INFINITY;
    int32_t how = 0;
    bool good() const { return larger <= kLarger; }
};

struct Pages {
    const float* bounds;

    bool finite(int64_t page) const {
        return std::all_of(bounds + 8 * page, bounds + 8 * page + 7, [](float x) { return std::isfinite(x); });
    }

    bool alike(int64_t one, int64_t other) const {
        if (!finite(one) || !finite(other)) return false;
        const float a = bounds[8 * one + 3], b = bounds[8 * other + 3];
        return std::max(a, b) <= kAlike * std::min(a, b);
    }

    // Page `one` gives a share of its rows to `other` along an axis; back > 0: to a new page, and the other this share of its.
    double larger(int64_t one, int64_t other, int axis, bool up, double share, double back) const {
        const Box mine = box_of(bounds + 8 * one), theirs = box_of(bounds + 8 * other);
        const double before = std::max(diagonal(mine, mine), diagonal(theirs, theirs));
        const Box taker = back > 0 ? slab(theirs, axis, !up, back) : theirs;
        return diagonal(slab(mine, axis, up, share), taker) / before;
    }

    bool up(int64_t from, int64_t to, int axis) const {
        const auto twice_the_centre = [&](int64_t page) { return double(bounds[8 * page + axis]) + double(bounds[8 * page + 4 + axis]); };
        return twice_the_centre(to) > twice_the_centre(from);
    }

    Way best(int64_t one, int64_t other, double share, double back = 0) const {
        Way way;
        if (!alike(one, other)) return way;
        for (int axis = 0; axis < 3; ++axis) {
            const bool upwards = up(one, other, axis);
            const double larger_by = larger(one, other, axis, upwards, share, back);
            if (larger_by < way.larger) way = {larger_by, 2 * axis + upwards};
        }
        return way;
    }

    // All rows of page `one` go to `other`; both may be sparse.
    Way best_of_all(int64_t one, int64_t other, const int32_t* fill) const {
        Way way = best(one, other, 1);
        way.larger /= spread(fill[one] + fill[other], std::max(fill[one], fill[other]));
        return way;
    }

    // How much larger a box may be with `rows` than with `before`.
    static double spread(int64_t rows, int64_t before) { return std::max(1.0, std::sqrt(double(rows) / double(before))); }

    // All rows of page `one`: this many to `first`, the others to `second`.
    Way best_pair(int64_t one, int64_t first, int64_t second, int64_t rows, const int32_t* fill) const {
        const double share = double(rows) / double(fill[one]);
        const double spread_first = spread(fill[first] + rows, std::max(fill[one], fill[first]));
        const double spread_second = spread(fill[second] + fill[one] - rows, std::max(fill[one], fill[second]));
        Way way;
        if (!alike(one, first) || !alike(one, second)) return way;
        for (int axis = 0; axis < 3; ++axis) {
            const bool upwards = up(second, first, axis);
            const double larger_by = std::max(larger(one, first, axis, upwards, share, 0) / spread_first,
                                              larger(one, second, axis, !upwards, 1 - share, 0) / spread_second);
            if (larger_by < way.larger) way = {larger_by, 2 * axis + upwards};
        }
        return way;
    }
};

struct Gifts {
    int32_t* out;  // [.., 4] giver, taker, rows, how
    int64_t count = 0;
    void add(int64_t giver, int64_t taker, int64_t rows, int32_t how) {
        if (rows < 1) return;
        const int32_t gift[4] = {int32_t(giver), int32_t(taker), int32_t(rows), how};
        std::copy(gift, gift + 4, out + 4 * count++);
    }
};

void parts_of(int64_t rows, int64_t parts, std::vector<int64_t>& sizes) {
    if (parts < 2) return sizes.push_back(rows);
    const int64_t lower = (parts + 1) / 2, first = (rows * lower + parts - 1) / parts;
    parts_of(first, lower, sizes);
    parts_of(rows - first, parts - lower, sizes);
}

}  // namespace

// Of pages [count] with bounds [count, 8] that would have total [count] rows: what those with more than page_rows give. gifts
// [.., 4]: giver, taker (beyond `count`: a new page, in the order in which they come), rows, how (grow.cpp). Returns how many.
CLM_API int64_t clm_gifts_of_full_pages(const int64_t* total, const float* bounds, int64_t count, int64_t page_rows, int32_t* gifts) {
    const Pages pages{bounds};
    Gifts given{gifts};
    std::vector<uint8_t> busy(static_cast<size_t>(count), 0);
    int64_t pages_now = count;
    const auto room = [&](int64_t n) { return kFull * double(n * page_rows); };
    for (int64_t page = 0; page < count; ++page) {
        const int64_t mine = total[page];
        if (mine <= page_rows || busy[size_t(page)]) continue;
        busy[size_t(page)] = 1;
        int64_t taker = -1, partner = -1, third = 0;
        Way to_taker, with_partner;
        for (int64_t other = 0; other < count; ++other) {
            if (busy[size_t(other)]) continue;
            const int64_t theirs = total[other], both = mine + theirs;
            if (double(both) <= room(2)) {
                const Way way = pages.best(page, other, double((mine - theirs) / 2) / double(mine));
                if (way.larger < to_taker.larger) to_taker = way, taker = other;
            } else if (const int64_t kept = (both + 2) / 3; double(both) <= room(3) && theirs > kept) {
                const Way way = pages.best(page, other, 1 - double(kept) / double(mine), 1 - double(kept) / double(theirs));
                if (way.larger < with_partner.larger) with_partner = way, partner = other, third = kept;
            }
        }
        if (to_taker.good()) {
            given.add(page, taker, (mine - total[taker]) / 2, to_taker.how);
            busy[size_t(taker)] = 1;
        } else if (with_partner.good()) {
            given.add(page, pages_now, mine - third, with_partner.how);
            given.add(partner, pages_now++, total[partner] - third, with_partner.how ^ 1);
            busy[size_t(partner)] = 1;
        } else {
            std::vector<int64_t> sizes;
            parts_of(mine, (mine + page_rows - 1) / page_rows, sizes);
            for (size_t part = 1; part < sizes.size(); ++part) given.add(page, pages_now++, sizes[part], kCut);
        }
    }
    return given.count;
}

// Of pages with fill [count] and bounds [count, 8], near each other in this order: what those that are rather empty give. gifts:
// as above. Returns how many.
CLM_API int64_t clm_gifts_of_empty_pages(const int32_t* fill, const float* bounds, int64_t count, int64_t page_rows, int32_t* gifts) {
    const Pages pages{bounds};
    Gifts given{gifts};
    std::vector<uint8_t> busy(static_cast<size_t>(count), 0);
    std::vector<int64_t> near;
    const auto room = [&](int64_t n) { return kFull * double(n * page_rows); };
    for (int64_t page = 0; page < count; ++page) {
        const int64_t mine = fill[page];
        if (busy[size_t(page)] || mine < 1 || double(mine) > kRatherEmpty * double(page_rows)) continue;
        near.clear();
        for (int64_t other = std::max<int64_t>(0, page - kLookedAt); other < std::min(count, page + kLookedAt + 1); ++other)
            if (other != page && !busy[size_t(other)]) near.push_back(other);
        int64_t taker = -1, first = -1, second = -1, rows = 0;
        Way to_taker, to_pair;
        for (int64_t other : near)
            if (double(mine + fill[other]) <= room(1)) {
                const Way way = pages.best_of_all(page, other, fill);
                if (way.larger < to_taker.larger) to_taker = way, taker = other;
            }
        if (to_taker.good()) {
            given.add(page, taker, mine, to_taker.how);
            busy[size_t(page)] = busy[size_t(taker)] = 1;
            continue;
        }
        std::stable_sort(near.begin(), near.end(), [&](int64_t a, int64_t b) { return fill[a] < fill[b]; });
        if (int64_t(near.size()) > kInPairs) near.resize(size_t(kInPairs));
        for (size_t i = 0; i < near.size(); ++i)
            for (size_t j = i + 1; j < near.size(); ++j) {
                const int64_t one = near[i], two = near[j];
                if (double(mine + fill[one] + fill[two]) > room(2)) continue;
                const int64_t half = (mine + fill[two] - fill[one]) / 2, share = std::clamp<int64_t>(half, 0, mine);
                const Way way = pages.best_pair(page, one, two, share, fill);
                if (way.larger < to_pair.larger) to_pair = way, first = one, second = two, rows = share;
            }
        if (!to_pair.good()) continue;
        given.add(page, first, rows, to_pair.how);
        given.add(page, second, mine - rows, to_pair.how ^ 1);
        busy[size_t(page)] = busy[size_t(first)] = busy[size_t(second)] = 1;
    }
    return given.count;
}
