// Which pages give rows to which others when some are rather empty; clm/store/gifts.py says by which rules.
#include <algorithm>
#include <cmath>
#include <vector>

#include "pool.h"

namespace {

constexpr double kFull = 0.9;          // of pages, at most, after rows were given: the next rebuild finds room
constexpr double kRatherEmpty = 0.6;   // of a page, at most: below the two thirds of three that shared, so nothing goes to and fro
constexpr double kLarger = 1.15;       // diagonal of a taker's box, at most, in diagonals that it may have
constexpr float kAlike = 4.f;          // ratio of the largest radii of pages
constexpr int64_t kLookedAt = 8;       // pages before and behind one along the curve
constexpr int64_t kInPairs = 6;        // of those, the emptiest, that are looked at in pairs
constexpr double kWorthwhile = 0.15;   // of a page, at least, that one gives to a rather empty one

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

    Box box(int64_t page) const { return box_of(bounds + 8 * page); }

    double size(int64_t page) const { return diagonal(box(page), box(page)); }

    // Page `one` gives a share of its rows to `other` along an axis.
    double larger(int64_t one, int64_t other, int axis, bool up, double share) const {
        return diagonal(slab(box(one), axis, up, share), box(other)) / std::max(size(one), size(other));
    }

    bool up(int64_t from, int64_t to, int axis) const {
        const auto twice_the_centre = [&](int64_t page) { return double(bounds[8 * page + axis]) + double(bounds[8 * page + 4 + axis]); };
        return twice_the_centre(to) > twice_the_centre(from);
    }

    // All rows of page `one` go to `other`; both may be sparse.
    Way best(int64_t one, int64_t other, const int32_t* fill) const {
        Way way;
        if (!alike(one, other)) return way;
        const double sparse = spread(fill[one] + fill[other], std::max(fill[one], fill[other]));
        return {larger(one, other, 0, true, 1) / sparse, 0};
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
            const double larger_by = std::max(larger(one, first, axis, upwards, share) / spread_first,
                                              larger(one, second, axis, !upwards, 1 - share) / spread_second);
            if (larger_by < way.larger) way = {larger_by, 2 * axis + upwards};
        }
        return way;
    }

    // Page `to` takes of each of some pages what they have beyond `kept`; hows [givers]: from each.
    double best_gathering(int64_t to, const std::vector<int64_t>& givers, int64_t kept, const int32_t* fill, int32_t* hows) const {
        Box all = box(to);
        double largest = size(to);
        for (int64_t giver : givers) {
            if (!alike(giver, to)) return INFINITY;
            Way way;
            Box part{};
            const double share = 1 - double(kept) / double(fill[giver]);
            for (int axis = 0; axis < 3; ++axis) {
                const bool upwards = up(giver, to, axis);
                const Box given = slab(box(giver), axis, upwards, share);
                const double across = diagonal(given, box(to));
                if (across < way.larger) way = {across, 2 * axis + upwards}, part = given;
            }
            for (int a = 0; a < 3; ++a) all.low[a] = std::min(all.low[a], part.low[a]), all.high[a] = std::max(all.high[a], part.high[a]);
            largest = std::max(largest, size(giver));
            *hows++ = way.how;
        }
        return diagonal(all, all) / largest;
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

}  // namespace

// Of pages with fill [count] and bounds [count, 8], near each other in this order: what those that are rather empty
// give, or take where nobody has room. gifts [.., 4]: giver, taker, rows, how (grow.cpp). Returns how many.
CLM_API int64_t clm_find_gifts(const int32_t* fill, const float* bounds, int64_t count, int64_t page_rows, int32_t* gifts) {
    const Pages pages{bounds};
    Gifts given{gifts};
    std::vector<uint8_t> busy(static_cast<size_t>(count), 0);
    std::vector<int64_t> near, all;
    const auto room = [&](int64_t n) { return kFull * double(n * page_rows); };
    for (int64_t page = 0; page < count; ++page) {
        const int64_t mine = fill[page];
        if (busy[size_t(page)] || mine < 1 || double(mine) > kRatherEmpty * double(page_rows)) continue;
        near.clear();
        for (int64_t other = std::max<int64_t>(0, page - kLookedAt); other < std::min(count, page + kLookedAt + 1); ++other)
            if (other != page && !busy[size_t(other)]) near.push_back(other);
        all = near;
        int64_t taker = -1, first = -1, second = -1, rows = 0;
        Way to_taker, to_pair;
        for (int64_t other : near)
            if (double(mine + fill[other]) <= room(1)) {
                const Way way = pages.best(page, other, fill);
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
        if (to_pair.good()) {
            given.add(page, first, rows, to_pair.how);
            given.add(page, second, mine - rows, to_pair.how ^ 1);
            busy[size_t(page)] = busy[size_t(first)] = busy[size_t(second)] = 1;
            continue;
        }
        near = all;
        std::stable_sort(near.begin(), near.end(), [&](int64_t a, int64_t b) { return fill[a] > fill[b]; });
        if (int64_t(near.size()) > kInPairs) near.resize(size_t(kInPairs));
        std::vector<int64_t> givers;
        int64_t kept = 0;
        int32_t hows[2], best_hows[2];
        double best = INFINITY;
        const auto consider = [&](const std::vector<int64_t>& some) {
            int64_t together = mine;
            for (int64_t giver : some) together += fill[giver];
            const int64_t parts = int64_t(some.size()) + 1, each = (together + parts - 1) / parts;
            for (int64_t giver : some)
                if (double(fill[giver] - each) < kWorthwhile * double(page_rows)) return;
            const double larger = pages.best_gathering(page, some, each, fill, hows);
            if (larger < best) best = larger, givers = some, kept = each, std::copy(hows, hows + 2, best_hows);
        };
        for (size_t i = 0; i < near.size(); ++i)
            for (size_t j = i + 1; j < near.size(); ++j) consider({near[i], near[j]});
        if (!(best <= kLarger)) {
            best = INFINITY;
            for (int64_t other : near) consider({other});
        }
        if (!(best <= kLarger)) continue;
        busy[size_t(page)] = 1;
        for (size_t k = 0; k < givers.size(); ++k) {
            given.add(givers[k], page, fill[givers[k]] - kept, best_hows[k]);
            busy[size_t(givers[k])] = 1;
        }
    }
    return given.count;
}
