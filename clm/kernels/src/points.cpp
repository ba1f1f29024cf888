// The records of COLMAP's points3D.bin and points3D.txt, a buffer of the file at a time: id, place and colour; tracks are skipped.
// Layouts: COLMAP's format description (little endian).
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "pool.h"

namespace {

constexpr int64_t kRecord = 51;             // id 8, place 24, colour 3, error 8, length of the track 8; then 8 bytes a track element
constexpr uint64_t kLongest = 1ull << 40;   // of a track: beyond it the file is damaged

bool blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

const char* after_blanks(const char* at) {
    while (blank(*at)) ++at;
    return at;
}

// A number that begins at `at` and ends at a blank or at the end of the line; null where there is none.
const char* real(const char* at, double* value) {
    at = after_blanks(at);
    if (*at == '\n') return nullptr;
    char* end;
    *value = std::strtod(at, &end);
    return end != at && (blank(*end) || *end == '\n') ? end : nullptr;
}

const char* whole(const char* at, uint64_t* value) {
    at = after_blanks(at);
    if (*at < '0' || *at > '9') return nullptr;
    char* end;
    *value = std::strtoull(at, &end, 10);
    return blank(*end) || *end == '\n' ? end : nullptr;
}

// One line: POINT3D_ID X Y Z R G B ERROR TRACK[]. False where it is none.
bool point_of_line(const char* at, uint64_t* id, double* place, uint8_t* colour) {
    double error;
    at = whole(at, id);
    for (int i = 0; i < 3 && at; ++i) at = real(at, place + i);
    for (int i = 0; i < 3 && at; ++i) {
        uint64_t value;
        at = whole(at, &value);
        if (at && value > 255) return false;
        if (at) colour[i] = uint8_t(value);
    }
    return at && real(at, &error);
}

}  // namespace

// Of data [size] at most `most` records that begin in it: ids, places [3], colours [3]. *used: bytes of them, which may end behind
// the data. Returns how many there are; the one behind them is cut off, or has a track of impossible length.
CLM_API int64_t clm_points_of_records(const void* data, int64_t size, int64_t most, uint64_t* ids, double* places, uint8_t* colours,
                                      int64_t* used) {
    const char* bytes = static_cast<const char*>(data);
    int64_t at = 0, count = 0;
    for (; count < most && at + kRecord <= size; ++count) {
        uint64_t track;
        std::memcpy(ids + count, bytes + at, 8);
        std::memcpy(places + 3 * count, bytes + at + 8, 24);
        std::memcpy(colours + 3 * count, bytes + at + 32, 3);
        std::memcpy(&track, bytes + at + 43, 8);
        if (track > kLongest) break;
        at += kRecord + 8 * int64_t(track);
    }
    *used = at;
    return count;
}

// The same of text [size] that consists of whole lines; blank lines and comments count for nothing. *used: lines read. Returns -1
// where the line behind these is none of a point.
CLM_API int64_t clm_points_of_lines(const void* text, int64_t size, uint64_t* ids, double* places, uint8_t* colours, int64_t* used) {
    const char *at = static_cast<const char*>(text), *end = at + size;
    int64_t count = 0;
    for (*used = 0; at < end; ++*used) {
        const char* line = after_blanks(at);
        if (*line != '\n' && *line != '#') {
            if (!point_of_line(line, ids + count, places + 3 * count, colours + 3 * count)) return -1;
            ++count;
        }
        at = static_cast<const char*>(std::memchr(line, '\n', size_t(end - line))) + 1;
    }
    return count;
}
