// Rows of many arrays moved one by one.
#include <cstring>

#include "pool.h"

// Rows moved one by one in the order of the list: row to[k] of every array becomes what row from[k] is by then. Runs
// [run_count + 1] cut the list into parts that nobody else reads or writes rows of; row_bytes [count].
CLM_API void clm_move_rows(char* const* arrays, const int64_t* row_bytes, int64_t count, const int32_t* from,
                           const int32_t* to, const int64_t* runs, int64_t run_count) {
    clm::parallel(run_count, [&](int64_t run, int) {
        for (int64_t a = 0; a < count; ++a) {
            const int64_t bytes = row_bytes[a];
            for (int64_t k = runs[run]; k < runs[run + 1]; ++k)
                std::memcpy(arrays[a] + to[k] * bytes, arrays[a] + from[k] * bytes, size_t(bytes));
        }
    });
}
