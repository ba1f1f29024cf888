// The plan of one batch: who shares how many rows, in which order the views run, which row lies in which slot.
//
// What the results mean is said in clm/plan/order.py and clm/plan/residency.py. Rows are numbered by a local id: blocks
// that no view touches are squeezed out (local = row - shift of its block), which keeps the order of rows. All state is
// over local ids, so time and memory follow what the batch sees, never N. Views are walked in runs, one per block, each
// with one shift. One thread: these run beside the compute threads, and take less than waking others would.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "pool.h"

namespace {

enum : int32_t { kDone = 0, kNotAscending = 1, kNoMemory = 2, kTooMany = 3 };

struct Run {
    int64_t begin, end;  // positions in the view's list
    int32_t shift;
};

struct Sets {
    const int32_t* const* rows;
    const int64_t* sizes;
    int64_t count;
};

struct Universe {
    std::vector<Run> runs;
    std::vector<int64_t> first_run;  // [views + 1]
    std::vector<int64_t> blocks;     // touched, ascending
    int64_t page_rows;

    int64_t size() const { return int64_t(blocks.size()) * page_rows; }
    int32_t shift(int64_t rank) const { return int32_t((blocks[rank] - rank) * page_rows); }
    // Local ids and slots are int32, and so is what is counted in them.
    bool too_large() const { return size() > INT32_MAX; }
    const Run* begin(int64_t view) const { return runs.data() + first_run[view]; }
    const Run* end(int64_t view) const { return runs.data() + first_run[view + 1]; }
};

bool ascending(const int32_t* rows, int64_t size) {
    if (size && rows[0] < 0) return false;
    int32_t wrong = 0;  // no early exit: the compiler makes vectors of it
    for (int64_t i = 1; i < size; ++i) wrong |= rows[i] <= rows[i - 1];
    return !wrong;
}

// False when a set is not strictly ascending from 0 on.
bool localize(const Sets& sets, int64_t page_rows, Universe& universe) {
    universe.page_rows = page_rows;
    universe.first_run.push_back(0);
    int64_t blocks = 0;
    for (int64_t v = 0; v < sets.count; ++v) {
        const int32_t* rows = sets.rows[v];
        const int64_t size = sets.sizes[v];
        if (!ascending(rows, size)) return false;
        for (int64_t at = 0; at < size;) {
            const int64_t block = rows[at] / page_rows, next = (block + 1) * page_rows;
            const int64_t most = page_rows < size - at ? at + page_rows : size;
            const int64_t end = rows[most - 1] < next ? most : std::lower_bound(rows + at, rows + most, next) - rows;
            universe.runs.push_back({at, end, int32_t(block)});
            at = end;
        }
        universe.first_run.push_back(int64_t(universe.runs.size()));
        if (size) blocks = std::max(blocks, rows[size - 1] / page_rows + 1);
    }
    std::vector<int32_t> rank(blocks, -1);
    for (const Run& run : universe.runs) rank[run.shift] = 0;
    for (int64_t b = 0; b < blocks; ++b) {
        if (rank[b] < 0) continue;
        rank[b] = int32_t(universe.blocks.size());
        universe.blocks.push_back(b);
    }
    for (Run& run : universe.runs) run.shift = universe.shift(rank[run.shift]);
    return true;
}

constexpr int32_t kAway = -1, kEvicted = -2;  // instead of a slot; evicted: a partial gradient waits on the host

// Mirrors clm.kernels.plan.ResidencyArrays: one list for all turns each, [total rows] but where a shape is given
// ([total rows + 1] for union_rows, whose last element is only scratch).
struct Residency {
    int32_t *slots, *load_rows, *load_slots, *send_rows, *send_slots, *union_rows;
    uint8_t* load_partial;
    int64_t* counts;  // [turns, 5] loads, early loads; rows that leave: final, with a partial gradient, with none
    int64_t* totals;  // [3] rows loaded with a partial gradient, rows shared with the turn before, rows of the union
};

struct Planner {
    const Sets& sets;
    const Universe& universe;
    const uint8_t* adds;             // [turns] whether gradients are added to the turn's rows
    const Residency& out;
    const int32_t never;             // the number of turns
    bool tight = false;              // the union does not fit: rows may be evicted
    bool all_add;                    // so whoever is evicted has a gradient
    std::vector<int32_t> slot_of;    // [universe], or why a row has none
    std::vector<int32_t> next_use;   // [universe] turn that uses the row next, `never` when none does; kept up if tight
    std::vector<uint64_t> resident;  // if tight, a bit per local id: loaded, not evicted; after their last use rows linger
    std::vector<uint64_t> added;     // if tight and not all turns add, a bit per local id: it has a gradient
    std::vector<int32_t> dropped;    // rows and slots, in turn, that leave with no gradient after the present turn
    std::vector<int32_t> free;       // slots free while the turn before computes, oldest first, from `head` on
    std::vector<int32_t> freed;      // slots free once the sends of the turn before have left, ascending
    std::vector<int32_t> missing;    // local ids that the turn must load
    std::vector<int32_t> keepers;
    std::vector<uint64_t> slot_bits;
    int64_t head = 0, loads = 0, sends = 0;

    Planner(const Sets& s, const uint8_t* a, const Universe& u, const Residency& r)
        : sets(s), universe(u), adds(a), out(r), never(int32_t(s.count)), all_add(std::count(a, a + s.count, 0) == 0),
          slot_of(u.size(), kAway), next_use(u.size(), never) {}

    template <class F>
    void each_row(int64_t turn, F&& body) const {
        const int32_t* rows = sets.rows[turn];
        for (const Run* run = universe.begin(turn); run != universe.end(turn); ++run) {
            const int64_t end = run->end;
            const int32_t shift = run->shift;
            for (int64_t p = run->begin; p < end; ++p) body(p, rows[p], rows[p] - shift);
        }
    }

    // The next use of every row after every turn goes where its slot will be written when the turn is planned.
    void find_next_uses(int64_t total) {
        for (int64_t turn = sets.count - 1; turn >= 0; --turn) {
            total -= sets.sizes[turn];
            const int32_t current = int32_t(turn), following = turn + 1 < sets.count ? current + 1 : kAway;
            int32_t *after = out.slots + total, *next = next_use.data();
            int64_t shared = 0;
            each_row(turn, [&](int64_t p, int32_t, int32_t local) {
                const int32_t use = next[local];
                after[p] = use;
                next[local] = current;
                shared += use == following;
            });
            out.totals[1] += shared;
        }
    }

    int64_t list_union() {
        const int32_t *next = next_use.data(), none = never;
        int32_t* listed = out.union_rows;
        int64_t count = 0;
        for (int64_t rank = 0; rank < int64_t(universe.blocks.size()); ++rank) {
            const int32_t shift = universe.shift(rank);
            for (int64_t l = rank * universe.page_rows; l < (rank + 1) * universe.page_rows; ++l) {
                listed[count] = int32_t(l + shift);  // as in find_missing, but up to one past the last
                count += next[l] < none;
            }
        }
        return count;
    }

    // Ascending, `to` may be `from`. Through one bit per slot, as whole lists are sorted at every turn.
    void sort_slots(const int32_t* from, int64_t count, int32_t* to) {
        if (std::is_sorted(from, from + count)) return void(std::copy_n(from, count, to));
        uint64_t* words = slot_bits.data();
        int32_t low = INT32_MAX, high = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int32_t slot = from[i];
            words[slot >> 6] |= uint64_t(1) << (slot & 63);
            low = std::min(low, slot);
            high = std::max(high, slot);
        }
        for (int32_t word = low >> 6; word <= high >> 6; ++word) {
            for (uint64_t bits = words[word]; bits; bits &= bits - 1) *to++ = word * 64 + __builtin_ctzll(bits);
            words[word] = 0;
        }
    }

    int64_t find_missing(int64_t turn) {
        const int32_t* slots = slot_of.data();
        int32_t *local_ids = missing.data(), *load_rows = out.load_rows + loads;
        uint8_t* partial = out.load_partial + loads;
        int64_t count = 0;
        each_row(turn, [&](int64_t, int32_t row, int32_t local) {
            const int32_t slot = slots[local];
            local_ids[count] = local;  // kept only where the count moves on: no branch to mispredict
            load_rows[count] = row;
            partial[count] = slot == kEvicted;
            count += slot < 0;
        });
        return count;
    }

    int64_t load(int64_t count) {
        const int64_t early = std::min(count, int64_t(free.size()) - head), late = count - early;
        int32_t* slots = out.load_slots + loads;
        sort_slots(free.data() + head, early, slots);
        std::copy_n(freed.data(), late, slots + early);
        head += early;
        free.insert(free.end(), freed.begin() + late, freed.end());
        const int32_t* local = missing.data();
        for (int64_t i = 0; i < count; ++i) slot_of[local[i]] = slots[i];
        if (tight) {
            uint64_t* words = resident.data();
            for (int64_t i = 0; i < count; ++i) words[local[i] >> 6] |= uint64_t(1) << (local[i] & 63);
            out.totals[0] += std::count(out.load_partial + loads, out.load_partial + loads + count, 1);
        }
        loads += count;
        return early;
    }

    // Writes the slots of a turn over its next uses, and sends the rows that it uses last; where it adds nothing, nothing
    // was added to those at all, and they are dropped. How many leave.
    int64_t use(int64_t turn, int32_t* slots) {
        if (tight && !all_add && adds[turn])
            each_row(turn, [words = added.data()](int64_t, int32_t, int32_t local) { words[local >> 6] |= uint64_t(1) << (local & 63); });
        if (tight) each_row(turn, [next = next_use.data(), slots](int64_t p, int32_t, int32_t local) { next[local] = slots[p]; });
        int32_t *send_rows = out.send_rows + sends, *send_slots = out.send_slots + sends, *place = slot_of.data();
        const int32_t none = never;
        int64_t finals = 0;
        each_row(turn, [&](int64_t p, int32_t row, int32_t local) {
            const int32_t slot = place[local];
            const int32_t last = -int32_t(slots[p] == none);
            slots[p] = slot;
            place[local] = slot | last;  // kAway if it was: a third of the branches would be mispredicted
            send_rows[finals] = row;     // as in find_missing
            send_slots[finals] = slot;
            finals -= last;
        });
        if (adds[turn]) {
            sends += finals;
        } else {
            for (int64_t i = 0; i < finals; ++i) dropped.insert(dropped.end(), {send_rows[i], send_slots[i]});
        }
        return finals;
    }

    // Appends the rows that leave with no gradient, ascending, to those that are sent.
    int64_t drop() {
        const int64_t count = int64_t(dropped.size()) / 2;
        std::vector<std::pair<int32_t, int32_t>> pairs(count);
        for (int64_t i = 0; i < count; ++i) pairs[i] = {dropped[2 * i], dropped[2 * i + 1]};
        std::sort(pairs.begin(), pairs.end());
        for (const auto& [row, slot] : pairs) {
            out.send_rows[sends] = row;
            out.send_slots[sends++] = slot;
        }
        dropped.clear();
        return count;
    }

    // Sends the `count` resident rows that the next turn does not use and whose next use is farthest; among rows of the
    // same next use the higher row. Next uses are few, so counting them selects without sorting.
    void evict(int64_t next_turn, int64_t count) {
        std::vector<int64_t> uses(never + 1, 0);
        int64_t kept = 0;
        for (int64_t word = 0; word < int64_t(resident.size()); ++word) {
            for (uint64_t bits = resident[word]; bits; bits &= bits - 1) {
                const int32_t local = int32_t(word * 64 + __builtin_ctzll(bits));
                const int32_t next = next_use[local];
                const bool here = slot_of[local] >= 0, keeper = here && next > next_turn;
                resident[word] ^= uint64_t(!here) << (local & 63);
                keepers[kept] = local;
                kept += keeper;
                uses[keeper ? next : 0] += 1;
            }
        }
        int32_t farthest = never - 1;
        while (uses[farthest] < count) count -= uses[farthest--];
        int64_t stay = uses[farthest] - count;
        for (int64_t i = 0; i < kept; ++i) {
            const int32_t local = keepers[i], next = next_use[local];
            if (next < farthest || (next == farthest && stay-- > 0)) continue;
            const int32_t row = local + universe.shift(local / universe.page_rows), slot = slot_of[local];
            if (all_add || added[local >> 6] >> (local & 63) & 1) {
                out.send_rows[sends] = row;
                out.send_slots[sends++] = slot;
                slot_of[local] = kEvicted;
            } else {
                dropped.insert(dropped.end(), {row, slot});
                slot_of[local] = kAway;
            }
            resident[local >> 6] &= ~(uint64_t(1) << (local & 63));
        }
    }

    void plan(int64_t capacity) {
        int64_t total = 0, largest = 0, at = 0;
        for (int64_t v = 0; v < sets.count; ++v) {
            total += sets.sizes[v];
            largest = std::max(largest, sets.sizes[v]);
        }
        find_next_uses(total);
        const int64_t listed = out.totals[2] = list_union();
        tight = capacity < listed;
        if (tight) resident.assign(universe.size() / 64 + 1, 0);
        if (tight && !all_add) added.assign(universe.size() / 64 + 1, 0);
        free.resize(std::min(capacity, listed));
        for (int64_t i = 0; i < int64_t(free.size()); ++i) free[i] = int32_t(i);
        slot_bits.assign(free.size() / 64 + 1, 0);
        keepers.resize(free.size() + 1);
        missing.resize(largest + 1);
        int64_t absent = sets.count ? find_missing(0) : 0;
        for (int64_t turn = 0; turn < sets.count; ++turn) {
            int64_t* counts = out.counts + 5 * turn;
            const int64_t sent = sends;
            counts[0] = absent;
            counts[1] = load(absent);
            const int64_t over = use(turn, out.slots + at);
            counts[2] = sends - sent;
            at += sets.sizes[turn];
            const bool last = turn + 1 == sets.count;
            absent = last ? 0 : find_missing(turn + 1);
            const int64_t needed = absent - (int64_t(free.size()) - head) - over;
            if (!last && needed > 0) evict(turn + 1, needed);
            counts[3] = sends - sent - counts[2];
            counts[4] = drop();
            freed.resize(sends - sent);
            sort_slots(out.send_slots + sent, sends - sent, freed.data());
        }
    }
};

constexpr int64_t kWords = 32;  // words of membership compared at once: 64 views' fit the first cache

// The best move of a tour: a reversal of begin .. end - 1, or those positions (turned or not) put behind position `to`.
struct Move {
    int64_t gain = 0, begin = 0, end = 0, to = -1;
    bool turned = false;
};

// 2-opt: edges (i, i + 1) and (j, j + 1) become (i, j) and (i + 1, j + 1). d [n, n]: distances in tour order.
void best_reversal(const int64_t* d, int64_t n, const int64_t* edge, Move& best) {
    for (int64_t i = 0; i + 2 < n; ++i) {
        const int64_t *from = d + i * n, *after = d + (i + 1) * n;
        for (int64_t j = i + 2; j < n; ++j) {
            const int64_t gain = edge[i] + edge[j] - from[j] - after[j + 1 < n ? j + 1 : 0];
            if (gain > best.gain) best = {gain, i + 1, j + 1, -1, false};
        }
    }
}

// Or-opt: positions first .. last (1 to 3 of them) go between j and j + 1, either way round.
void best_relocation(const int64_t* d, int64_t n, const int64_t* edge, Move& best) {
    for (int64_t j = 0; j < n; ++j) {
        const int64_t *from = d + j * n, *after = d + (j + 1 < n ? j + 1 : 0) * n;
        for (int64_t length = 1; length <= 3; ++length) {
            for (int64_t first = 1; first + length <= n; ++first) {
                const int64_t last = first + length - 1, behind = last + 1 < n ? last + 1 : 0;
                if (j >= first - 1 && j <= last) continue;
                const int64_t removed = edge[first - 1] + edge[last] - d[(first - 1) * n + behind];
                const int64_t forward = from[first] + after[last], turned = from[last] + after[first];
                const int64_t gain = removed + edge[j] - std::min(forward, turned);
                if (gain > best.gain) best = {gain, first, last + 1, j, turned < forward};
            }
        }
    }
}

void apply(const Move& move, std::vector<int64_t>& spare, int64_t n, int64_t* tour) {
    if (move.to < 0 || move.turned) std::reverse(tour + move.begin, tour + move.end);
    if (move.to < 0) return;
    spare.assign(tour, tour + n);
    if (move.to < move.begin)
        std::rotate_copy(spare.begin() + move.to + 1, spare.begin() + move.begin, spare.begin() + move.end, tour + move.to + 1);
    else
        std::rotate_copy(spare.begin() + move.begin, spare.begin() + move.end, spare.begin() + move.to + 1, tour + move.begin);
}

template <class F>
int32_t guarded(F&& body) {
    try {
        return body();
    } catch (const std::bad_alloc&) {  // must not unwind into the caller, which is not C++
        return kNoMemory;
    }
}

}  // namespace

CLM_API int32_t clm_plan_residency(const int32_t* const* rows, const int64_t* sizes, const uint8_t* adds, int64_t turns,
                                   int64_t capacity, int64_t page_rows, const Residency* out) {
    return guarded([&] {
        Universe universe;
        const Sets sets{rows, sizes, turns};
        if (!localize(sets, page_rows, universe)) return kNotAscending;
        if (universe.too_large() || turns >= INT32_MAX) return kTooMany;
        Planner(sets, adds, universe, *out).plan(capacity);
        return kDone;
    });
}

// shared[a, b] = |A & B| of sorted sets (the diagonal stays zero), counted in bits of one touched block after the other: scratch
// is a block per view, and the time follows the pairs of views that see a block.
CLM_API int32_t clm_plan_overlaps(const int32_t* const* rows, const int64_t* sizes, int64_t views, int64_t page_rows,
                                  int64_t* shared) {
    return guarded([&] {
        Universe universe;
        const Sets sets{rows, sizes, views};
        if (!localize(sets, page_rows, universe)) return kNotAscending;
        const int64_t words = (page_rows + 63) / 64;
        std::vector<uint64_t> bits(views * words);
        std::vector<const Run*> next(views);
        for (int64_t v = 0; v < views; ++v) next[v] = universe.begin(v);
        std::vector<int64_t> seeing;  // views with a row in the block
        for (const int64_t block : universe.blocks) {
            seeing.clear();
            for (int64_t v = 0; v < views; ++v) {
                const Run* run = next[v];
                if (run == universe.end(v) || rows[v][run->begin] / page_rows != block) continue;
                uint64_t* member = bits.data() + int64_t(seeing.size()) * words;
                std::memset(member, 0, sizeof(uint64_t) * words);
                for (int64_t p = run->begin; p < run->end; ++p) {
                    const int64_t place = rows[v][p] - block * page_rows;
                    member[place >> 6] |= uint64_t(1) << (place & 63);
                }
                seeing.push_back(v);
                ++next[v];
            }
            for (size_t i = 0; i < seeing.size(); ++i) {
                const uint64_t* a = bits.data() + int64_t(i) * words;
                for (size_t j = i + 1; j < seeing.size(); ++j) {
                    const uint64_t* b = bits.data() + int64_t(j) * words;
                    int64_t count = 0;
                    for (int64_t w = 0; w < words; ++w) count += __builtin_popcountll(a[w] & b[w]);
                    shared[seeing[i] * views + seeing[j]] += count;
                }
            }
        }
        for (int64_t a = 0; a < views; ++a)
            for (int64_t b = 0; b < a; ++b) shared[a * views + b] = shared[b * views + a];
        return kDone;
    });
}

// Shortest open path [count] by dynamic programming (Held and Karp 1962). distances [count + 1, count + 1], the gap last;
// of equal predecessors the first.
CLM_API int32_t clm_order_exact(const int64_t* distances, int64_t count, int64_t* path) {
    return guarded([&] {
        const int64_t size = count + 1;
        const uint32_t all = (1u << count) - 1;
        std::vector<int64_t> cost((all + 1) * count, 0);  // [subset, last view]
        std::vector<int8_t> before((all + 1) * count, 0);
        for (uint32_t subset = 1; subset <= all; ++subset) {
            for (uint32_t lasts = subset; lasts; lasts &= lasts - 1) {
                const int64_t last = __builtin_ctz(lasts);
                const uint32_t rest = subset ^ (1u << last);
                int64_t best = rest ? INT64_MAX : distances[last * size + count];
                for (uint32_t others = rest; others; others &= others - 1) {
                    const int64_t other = __builtin_ctz(others);
                    const int64_t through = cost[rest * count + other] + distances[last * size + other];
                    if (through >= best) continue;
                    best = through;
                    before[subset * count + last] = int8_t(other);
                }
                cost[subset * count + last] = best;
            }
        }
        int64_t last = 0, shortest = INT64_MAX;
        for (int64_t v = 0; v < count; ++v) {
            const int64_t length = cost[all * count + v] + distances[v * size + count];
            if (length >= shortest) continue;
            shortest = length;
            last = v;
        }
        uint32_t subset = all;
        for (int64_t at = count - 1; at >= 0; --at) {
            path[at] = last;
            const int64_t previous = before[subset * count + last];
            subset ^= 1u << last;
            last = previous;
        }
        return kDone;
    });
}

// The shortest of the greedy tours that start at each view; tour [count + 1], the gap first. Of equals the first.
CLM_API int32_t clm_order_greedy(const int64_t* distances, int64_t count, int64_t* tour) {
    return guarded([&] {
        const int64_t size = count + 1;
        std::vector<int64_t> path(count), left(count);
        int64_t shortest = INT64_MAX;
        for (int64_t start = 0; start < count; ++start) {
            left.resize(count);
            for (int64_t v = 0; v < count; ++v) left[v] = v;
            left.erase(left.begin() + start);
            path[0] = start;
            int64_t length = distances[count * size + start];
            for (int64_t at = 1; at < count; ++at) {
                const int64_t* from = distances + path[at - 1] * size;
                const auto nearest = std::min_element(left.begin(), left.end(), [&](int64_t a, int64_t b) { return from[a] < from[b]; });
                length += from[*nearest];
                path[at] = *nearest;
                left.erase(nearest);  // keeps the rest ascending: ties go to the lowest view
            }
            length += distances[path[count - 1] * size + count];
            if (length >= shortest) continue;
            shortest = length;
            tour[0] = count;
            std::copy(path.begin(), path.end(), tour + 1);
        }
        return kDone;
    });
}

// Takes the best 2-opt or or-opt move until none shortens the tour [size] or `budget` scans are spent. Sets the scans used.
CLM_API int32_t clm_order_descend(const int64_t* distances, int64_t size, int64_t* tour, int64_t budget, int64_t* used) {
    return guarded([&] {
        std::vector<int64_t> local(size * size), edge(size), spare;
        for (*used = 0; *used < budget;) {
            *used += 1;
            for (int64_t i = 0; i < size; ++i)
                for (int64_t j = 0; j < size; ++j) local[i * size + j] = distances[tour[i] * size + tour[j]];
            for (int64_t i = 0; i < size; ++i) edge[i] = local[i * size + (i + 1) % size];
            Move best;
            best_reversal(local.data(), size, edge.data(), best);
            best_relocation(local.data(), size, edge.data(), best);
            if (best.gain <= 0) break;
            apply(best, spare, size, tour);
        }
        return kDone;
    });
}

// Bytes of what Python fills in: a test compares them with its structures.
CLM_API int64_t clm_residency_bytes() { return sizeof(Residency); }
