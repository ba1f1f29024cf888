// Squared distances from every point to its k nearest other points, exact, over a balanced kd-tree built in place.
//
// A photogrammetric cloud has outliers a thousand times farther out than its points are apart, so a uniform grid would put
// nearly all points in one cell; a median-split tree does not care. The tree is implicit: segment [begin, end) of the items is
// halved by count at each of `levels` levels, node n has children 2n+1 and 2n+2. Pruning compares the same float expression
// that distances are made of, and rounding is monotone, so the result is bitwise that of testing every pair.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "pool.h"

namespace {

constexpr int kMaxNeighbours = 8;
constexpr int kTopLevels = 6;        // levels cut one at a time, so that 64 subtrees can be built in parallel
constexpr int64_t kQueryChunk = 4096;

struct Item {
    float at[3];
    int32_t id;
};

struct Node {
    float split;
    int32_t axis;
};

struct Segment {
    int64_t begin, end;
};

struct Tree {
    Item* items;
    Node* nodes;
    int levels;
};

// Halves a segment at the median of its widest axis and returns the middle.
int64_t cut(const Tree& tree, Segment s, int64_t node) {
    float lo[3], hi[3];
    for (int a = 0; a < 3; ++a) {
        lo[a] = std::numeric_limits<float>::infinity();
        hi[a] = -lo[a];
    }
    for (int64_t i = s.begin; i < s.end; ++i)
        for (int a = 0; a < 3; ++a) {
            lo[a] = std::min(lo[a], tree.items[i].at[a]);
            hi[a] = std::max(hi[a], tree.items[i].at[a]);
        }
    int axis = 0;
    for (int a = 1; a < 3; ++a)
        if (hi[a] - lo[a] > hi[axis] - lo[axis]) axis = a;
    const int64_t middle = s.begin + (s.end - s.begin) / 2;
    std::nth_element(tree.items + s.begin, tree.items + middle, tree.items + s.end,
                     [axis](const Item& a, const Item& b) { return a.at[axis] < b.at[axis]; });
    tree.nodes[node] = {tree.items[middle].at[axis], axis};
    return middle;
}

void build(const Tree& tree, Segment s, int64_t node, int level) {
    if (level == tree.levels) return;
    const int64_t middle = cut(tree, s, node);
    build(tree, {s.begin, middle}, 2 * node + 1, level + 1);
    build(tree, {middle, s.end}, 2 * node + 2, level + 1);
}

// The segment of the node that is `index`-th from the left on its level.
Segment segment_of(int64_t count, int level, int64_t index) {
    Segment s{0, count};
    for (int bit = level - 1; bit >= 0; --bit) {
        const int64_t middle = s.begin + (s.end - s.begin) / 2;
        if (index >> bit & 1) s.begin = middle;
        else s.end = middle;
    }
    return s;
}

struct Query {
    const Tree& tree;
    const float* at;
    int64_t self;  // position among the items: a duplicate of the point is a neighbour, the point itself is not
    int k;
    float best[kMaxNeighbours];  // ascending

    void search(Segment s, int64_t node, int level) {
        if (level == tree.levels) {
            for (int64_t i = s.begin; i < s.end; ++i)
                if (i != self) offer(tree.items[i].at);
            return;
        }
        const Node here = tree.nodes[node];
        const float gap = at[here.axis] - here.split;
        const int64_t middle = s.begin + (s.end - s.begin) / 2;
        const Segment left{s.begin, middle}, right{middle, s.end};
        search(gap < 0.f ? left : right, 2 * node + (gap < 0.f ? 1 : 2), level + 1);
        if (gap * gap < best[k - 1]) search(gap < 0.f ? right : left, 2 * node + (gap < 0.f ? 2 : 1), level + 1);
    }

    void offer(const float* p) {
        const float dx = p[0] - at[0], dy = p[1] - at[1], dz = p[2] - at[2];
        const float d2 = (dx * dx + dy * dy) + dz * dz;
        if (!(d2 < best[k - 1])) return;
        int slot = k - 1;
        for (; slot > 0 && best[slot - 1] > d2; --slot) best[slot] = best[slot - 1];
        best[slot] = d2;
    }
};

}  // namespace

// points [count, 3]; items: scratch [count, 16 bytes]; nodes: scratch [2^levels - 1, 8 bytes]; squared [count, k] ascending,
// infinite where there are fewer than k other points. Points must be finite; count < 2^31; 1 <= k <= 8.
CLM_API void clm_knn(const float* points, int64_t count, int k, int levels, void* items, void* nodes, float* squared) {
    const Tree tree{static_cast<Item*>(items), static_cast<Node*>(nodes), levels};
    for (int64_t i = 0; i < count; ++i) {
        std::memcpy(tree.items[i].at, points + 3 * i, sizeof tree.items[i].at);
        tree.items[i].id = int32_t(i);
    }
    const int top = std::min(levels, kTopLevels);
    for (int level = 0; level < top; ++level)
        clm::parallel(int64_t(1) << level, [&](int64_t index, int) {
            cut(tree, segment_of(count, level, index), (int64_t(1) << level) - 1 + index);
        });
    clm::parallel(int64_t(1) << top, [&](int64_t index, int) {
        build(tree, segment_of(count, top, index), (int64_t(1) << top) - 1 + index, top);
    });
    clm::parallel((count + kQueryChunk - 1) / kQueryChunk, [&](int64_t chunk, int) {
        const int64_t end = std::min(count, (chunk + 1) * kQueryChunk);
        for (int64_t i = chunk * kQueryChunk; i < end; ++i) {
            Query query{tree, tree.items[i].at, i, k, {}};
            std::fill_n(query.best, k, std::numeric_limits<float>::infinity());
            query.search({0, count}, 0, 0);
            std::memcpy(squared + int64_t(tree.items[i].id) * k, query.best, sizeof(float) * k);
        }
    });
}
