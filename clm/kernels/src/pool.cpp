#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace clm {
namespace {

struct Job {
    void (*body)(void*, int64_t, int);
    void* context;
    int64_t chunks;
    std::atomic<int64_t> next{0};
    std::atomic<int> seats{1};  // worker numbers handed out; the caller has seat 0
    int helpers = 0;            // workers inside the job, guarded by Pool::mutex
};

void run_chunks(Job& job, int worker) {
    for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.chunks;) job.body(job.context, i, worker);
}

class Pool {
  public:
    ~Pool() { resize(1); }

    void resize(int threads) {
        std::lock_guard<std::mutex> one_resize(resize_mutex_);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (auto& t : workers_) t.join();
        workers_.clear();
        stopping_ = false;
        threads_ = threads < 1 ? 1 : threads;
        for (int i = 1; i < threads_; ++i) workers_.emplace_back([this] { work(); });
    }

    int threads() const { return threads_; }

    void run(Job& job) {
        if (threads_ == 1 || job.chunks <= 1) {
            run_chunks(job, 0);
            return;
        }
        {
            std::lock_guard<std::mutex> lock(mutex_);
            jobs_.push_back(&job);
        }
        wake_.notify_all();
        run_chunks(job, 0);
        std::unique_lock<std::mutex> lock(mutex_);
        for (auto it = jobs_.begin(); it != jobs_.end(); ++it)
            if (*it == &job) {
                jobs_.erase(it);
                break;
            }
        // The caller waits for helpers that still run their last chunk: the job lives on the caller's stack.
        done_.wait(lock, [&] { return job.helpers == 0; });
    }

  private:
    Job* open_job() {
        for (Job* job : jobs_)
            if (job->next.load(std::memory_order_relaxed) < job->chunks && job->helpers < threads_ - 1) return job;
        return nullptr;
    }

    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            Job* job = nullptr;
            wake_.wait(lock, [&] { return stopping_ || (job = open_job()) != nullptr; });
            if (stopping_) return;
            ++job->helpers;
            lock.unlock();
            // A worker that leaves a job finds it exhausted and never re-enters, so seats stay below the thread count.
            run_chunks(*job, job->seats.fetch_add(1));
            lock.lock();
            --job->helpers;
            done_.notify_all();
        }
    }

    std::mutex mutex_, resize_mutex_;
    std::condition_variable wake_, done_;
    std::deque<Job*> jobs_;
    std::vector<std::thread> workers_;
    std::atomic<int> threads_{1};
    bool stopping_ = false;
};

Pool& pool() {
    // Never destroyed: workers may outlive static destructors, and joining them at exit can deadlock under dlclose.
    static Pool* instance = new Pool();
    return *instance;
}

}  // namespace

void parallel_for(int64_t chunks, void (*body)(void*, int64_t, int), void* context) {
    Job job;
    job.body = body;
    job.context = context;
    job.chunks = chunks;
    pool().run(job);
}

int thread_count() { return pool().threads(); }

}  // namespace clm

CLM_API void clm_set_threads(int threads) { clm::pool().resize(threads); }
CLM_API int clm_get_threads() { return clm::thread_count(); }
CLM_API int clm_abi_version() { return 20; }
