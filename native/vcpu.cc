#include "vcpu.h"

#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "arguments.h"

namespace vhost_iotlb {

namespace {

// KVM_RUN takes a signal as the wish to leave the guest. Nobody else uses this one: libc keeps the
// first two of the real-time signals, debuggers and profilers of Node use others.
int KickSignal() {
  return SIGRTMIN + 5;
}

constexpr double kMostPages = 64;

// How often the watcher looks at its deadline, which may have come nearer since.
constexpr int kTickMilliseconds = 10;

// The clock of uv_now(): to be read at each exit, hence not one that asks a device.
uint64_t Milliseconds() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1000 + static_cast<uint64_t>(now.tv_nsec) / 1000000;
}

bool CatchKickSignal() {
  struct sigaction action = {};
  if (sigaction(KickSignal(), nullptr, &action) != 0) return false;
  if (action.sa_handler != SIG_DFL) return true;
  action.sa_handler = [](int) {};
  // KVM_RUN is never restarted; what else the signal may interrupt is.
  action.sa_flags = SA_RESTART;
  return sigaction(KickSignal(), &action, nullptr) == 0;
}

}  // namespace

RunArea::~RunArea() {
  munmap(data_, length_);
}

VcpuThread::VcpuThread(Napi::Env env, std::shared_ptr<DescriptorState> descriptor,
                       std::shared_ptr<RunArea> area, Napi::Function listener)
    : env_(env),
      environment_(Environment::Of(env)),
      descriptor_(std::move(descriptor)),
      area_(std::move(area)),
      listener_(Napi::Persistent(listener)) {
  uv_sem_init(&resume_, 0);
  uv_sem_init(&started_, 0);
}

VcpuThread::~VcpuThread() {
  uv_sem_destroy(&resume_);
  uv_sem_destroy(&started_);
}

VcpuThread* VcpuThread::Start(Napi::Env env, std::shared_ptr<DescriptorState> descriptor,
                              size_t length, Napi::Function listener, int* error) {
  uv_loop_t* loop = nullptr;
  *error = -EBADF;
  if (descriptor->fd() < 0) return nullptr;
  *error = -ENOSYS;
  if (!CatchKickSignal() || napi_get_uv_event_loop(env, &loop) != napi_ok) return nullptr;
  void* data = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor->fd(), 0);
  *error = -errno;
  if (data == MAP_FAILED) return nullptr;

  auto* self = new VcpuThread(env, std::move(descriptor),
                              std::shared_ptr<RunArea>(new RunArea(data, length)), listener);
  self->loop_ = loop;
  self->async_.data = self;
  self->idle_.data = self;
  napi_async_init(env, nullptr, Napi::String::New(env, "vhost-iotlb:vcpu"), &self->context_);
  *error = -ENOMEM;
  if (self->context_ != nullptr) *error = uv_async_init(loop, &self->async_, OnExit);
  if (*error != 0) {
    self->DestroyContext();
    delete self;
    return nullptr;
  }
  uv_idle_init(loop, &self->idle_);
  self->open_handles_ = 2;
  self->environment_->open_vcpus.insert(self);
  self->descriptor_->vcpus.insert(self);
  self->loop_thread_id_ = static_cast<int>(syscall(SYS_gettid));
  *error = uv_thread_create(&self->thread_, Main, self);
  if (*error == 0) {
    self->has_thread_ = true;
    uv_sem_wait(&self->started_);
    return self;
  }
  self->Close();
  return nullptr;
}

void VcpuThread::Main(void* data) {
  auto* self = static_cast<VcpuThread*>(data);
  // Every other signal is for the threads of Node.
  sigset_t others;
  sigfillset(&others);
  sigdelset(&others, KickSignal());
  sigprocmask(SIG_SETMASK, &others, nullptr);
  self->thread_id_ = static_cast<int>(syscall(SYS_gettid));
  uv_sem_post(&self->started_);
  self->Attend();
}

int VcpuThread::RunOnce() {
  int result = ioctl(descriptor_->fd(), KVM_RUN, 0);
  return result < 0 ? -errno : 0;
}

// Between the last look at what is asked and the wait there may be a new entry, by one who did not see
// that nobody waits: it is found by its number.
void VcpuThread::Attend() {
  for (;;) {
    uv_sem_wait(&resume_);
    uint32_t entry = 0;
    do {
      if (ending_.load()) return;
      entry = entries_.load();
      Task task = kRun;
      if (task_.compare_exchange_strong(task, kNone)) {
        Run();
      } else if (task == kWatch) {
        entry = Watch(entry);
      }
      waits_.store(true);
    } while (entries_.load() != entry && waits_.exchange(false));
  }
}

void VcpuThread::Run() {
  result_.store(RunOnce());
  exits_.fetch_add(1);
  if (!ending_.load()) uv_async_send(&async_);
}

// One signal for each entry at most: they queue up, and a processor that is sent them faster than it
// takes them never leaves the last one's handler.
uint32_t VcpuThread::Watch(uint32_t entry) {
  pollfd loop = {uv_backend_fd(loop_), POLLIN, 0};
  while (!ending_.load() && task_.load() == kWatch) {
    int ready = poll(&loop, 1, kTickMilliseconds);
    if (ready <= 0 && Milliseconds() < deadline_.load()) continue;
    entry = entries_.load();
    if (task_.load() != kWatch) return entry - 1;
    if (running_.load()) Signal(loop_thread_id_);
    return entry;
  }
  return entry - 1;
}

void VcpuThread::Ask(Task task) {
  task_.store(task);
  entries_.fetch_add(1);
  if (waits_.exchange(false)) uv_sem_post(&resume_);
}

void VcpuThread::Resume(bool on_loop) {
  if (!open_ || in_guest_) return;
  in_guest_ = true;
  on_loop_ = on_loop;
  if (on_loop) {
    uv_idle_start(&idle_, OnTurn);
  } else {
    Ask(kRun);
  }
}

void VcpuThread::Interrupt() {
  if (open_ && in_guest_) Signal(on_loop_ ? loop_thread_id_ : thread_id_);
}

// A signal that comes before KVM_RUN is lost, but the flag makes the next one return at once.
void VcpuThread::Signal(int thread_id) {
  auto* run = reinterpret_cast<kvm_run*>(area_->data());
  __atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
  syscall(SYS_tgkill, getpid(), thread_id, KickSignal());
}

// One call an exit: the loop may be told once for several wake-ups, and once more for none.
void VcpuThread::OnExit(uv_async_t* async) {
  auto* self = static_cast<VcpuThread*>(async->data);
  int exits = self->exits_.load();
  if (exits == self->seen_ || !self->open_) return;
  self->seen_ = exits;
  self->Deliver(self->result_.load());
}

// An idle handle makes the loop look at its descriptors without waiting, turn after turn.
void VcpuThread::OnTurn(uv_idle_t* idle) {
  auto* self = static_cast<VcpuThread*>(idle->data);
  if (self->open_ && !self->LoopHasWork()) self->EnterGuest();
}

// Whether something other than this handle keeps the loop from waiting; sets the deadline if not.
bool VcpuThread::LoopHasWork() {
  uv_idle_stop(&idle_);
  int milliseconds = uv_backend_timeout(loop_);
  uv_idle_start(&idle_, OnTurn);
  deadline_.store(milliseconds < 0 ? UINT64_MAX : uv_now(loop_) + milliseconds);
  return milliseconds == 0;
}

void VcpuThread::EnterGuest() {
  // In this order: who sees the new entry also sees that it is running, and signals it.
  running_.store(true);
  Ask(kWatch);
  int result = RunOnce();
  running_.store(false);
  auto* run = reinterpret_cast<kvm_run*>(area_->data());
  __atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
  // The loop has its turn, and the guest the next.
  if (result == -EINTR || result == -EAGAIN) return;
  uv_idle_stop(&idle_);
  Deliver(result);
}

void VcpuThread::Deliver(int result) {
  in_guest_ = false;
  auto* run = reinterpret_cast<kvm_run*>(area_->data());
  __atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);

  napi_env env = env_;
  Napi::HandleScope scope(env);
  napi_value global = nullptr;
  napi_value argument = nullptr;
  napi_value ignored = nullptr;
  if (napi_get_global(env, &global) != napi_ok ||
      napi_create_int32(env, result, &argument) != napi_ok) {
    return;
  }
  calling_ = true;
  napi_status status =
      napi_make_callback(env, context_, global, listener_.Value(), 1, &argument, &ignored);
  calling_ = false;
  if (!open_) DestroyContext();
  if (status == napi_ok) return;
  // Nobody above would see the exception.
  bool pending = false;
  napi_value exception = nullptr;
  if (napi_is_exception_pending(env, &pending) == napi_ok && pending &&
      napi_get_and_clear_last_exception(env, &exception) == napi_ok) {
    napi_fatal_exception(env, exception);
  }
}

void VcpuThread::Close() {
  open_ = false;
  if (has_thread_) {
    ending_.store(true);
    Signal(thread_id_);
    uv_sem_post(&resume_);
    uv_thread_join(&thread_);
  }
  environment_->open_vcpus.erase(this);
  descriptor_->vcpus.erase(this);
  environment_->closing_handles++;
  uv_close(reinterpret_cast<uv_handle_t*>(&async_), OnClosed);
  uv_close(reinterpret_cast<uv_handle_t*>(&idle_), OnClosed);
  listener_.Reset();
  if (!calling_) DestroyContext();
  if (Vcpu* owner = std::exchange(owner_, nullptr)) owner->Forget();
}

void VcpuThread::OnClosed(uv_handle_t* handle) {
  auto* self = static_cast<VcpuThread*>(handle->data);
  if (--self->open_handles_ > 0) return;
  Environment* environment = self->environment_;
  delete self;
  environment->HandleClosed();
}

void VcpuThread::DestroyContext() {
  if (napi_async_context context = std::exchange(context_, nullptr)) {
    napi_async_destroy(env_, context);
  }
}

Napi::Function Vcpu::Define(Napi::Env env) {
  return DefineClass(env, "Vcpu",
                     {InstanceAccessor<&Vcpu::Run>("run"),
                      InstanceAccessor<&Vcpu::ThreadId>("threadId"),
                      InstanceMethod<&Vcpu::ResumeMethod>("resume"),
                      InstanceMethod<&Vcpu::InterruptMethod>("interrupt"),
                      InstanceMethod<&Vcpu::CloseMethod>("close")});
}

Vcpu::Vcpu(const Napi::CallbackInfo& info) : TaggedWrap<Vcpu>(info) {
  Napi::Env env = info.Env();
  thread_ = std::exchange(Environment::Of(env)->new_vcpu, nullptr);
  if (thread_ == nullptr) {
    ThrowIllegalConstructor(env);
    return;
  }
  thread_->SetOwner(this);
  Ref();
  auto* area = new std::shared_ptr<RunArea>(thread_->area());
  napi_value buffer = nullptr;
  napi_status status = napi_create_external_arraybuffer(
      env, (*area)->data(), (*area)->length(),
      [](napi_env, void*, void* hint) { delete static_cast<std::shared_ptr<RunArea>*>(hint); },
      area, &buffer);
  // The finalizer has run, or will.
  if (status != napi_ok) return;
  run_ = Napi::Reference<Napi::Value>::New(Napi::Value(env, buffer), 1);
  Tag(info);
}

Vcpu::~Vcpu() {
  if (thread_ == nullptr) return;
  thread_->SetOwner(nullptr);
  thread_->Close();
}

void Vcpu::Forget() {
  thread_ = nullptr;
  Napi::HandleScope scope(Env());
  if (!run_.IsEmpty()) napi_detach_arraybuffer(Env(), run_.Value());
  Unref();
}

Napi::Value Vcpu::Run(const Napi::CallbackInfo&) {
  return run_.Value();
}

Napi::Value Vcpu::ThreadId(const Napi::CallbackInfo& info) {
  return Napi::Number::New(info.Env(), thread_ == nullptr ? -EBADF : thread_->thread_id());
}

void Vcpu::ResumeMethod(const Napi::CallbackInfo& info) {
  bool on_loop = false;
  if (!IsNullish(info[0])) {
    if (!info[0].IsBoolean()) {
      ThrowType(info.Env(), "onLoop", "a boolean");
      return;
    }
    on_loop = info[0].As<Napi::Boolean>().Value();
  }
  if (thread_ != nullptr) thread_->Resume(on_loop);
}

void Vcpu::InterruptMethod(const Napi::CallbackInfo&) {
  if (thread_ != nullptr) thread_->Interrupt();
}

void Vcpu::CloseMethod(const Napi::CallbackInfo&) {
  if (thread_ != nullptr) thread_->Close();
}

Napi::Value Vcpu::Create(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const double page = static_cast<double>(sysconf(_SC_PAGESIZE));
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  size_t length = 0;
  if (descriptor == nullptr ||
      !ReadInteger(info[1], "byteLength", page, kMostPages * page, &length)) {
    return Napi::Value();
  }
  if (!info[2].IsFunction()) {
    ThrowType(env, "listener", "a function");
    return Napi::Value();
  }
  int error = 0;
  VcpuThread* thread = VcpuThread::Start(env, descriptor->state(), length,
                                         info[2].As<Napi::Function>(), &error);
  if (thread == nullptr) return Napi::Number::New(env, error);

  Environment* environment = Environment::Of(env);
  environment->new_vcpu = thread;
  Napi::Object object = environment->vcpu_class.New({});
  // The constructor did not run: no stack left, or the environment is ending.
  if (VcpuThread* orphan = std::exchange(environment->new_vcpu, nullptr)) orphan->Close();
  return object;
}

}  // namespace vhost_iotlb
