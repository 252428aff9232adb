#include "poller.h"

#include <cerrno>
#include <utility>

#include "messages.h"

namespace vhost_iotlb {

namespace {

constexpr double kMostBusyMicroseconds = 1000;
// Busy polling gives the loop back after this long, however many messages come.
constexpr uint64_t kLongestTurn = 1000 * 1000;

}  // namespace

PollHandle::PollHandle(Napi::Env env, std::shared_ptr<DescriptorState> descriptor,
                       const Options& options)
    : env_(env),
      environment_(Environment::Of(env)),
      descriptor_(std::move(descriptor)),
      listener_(Napi::Persistent(options.listener)),
      size_(options.size),
      busy_nanoseconds_(options.busy_nanoseconds) {
  if (!IsNullish(options.buffer)) {
    buffer_ = Napi::Reference<Napi::Value>::New(options.buffer, 1);
  }
}

PollHandle* PollHandle::Start(Napi::Env env, std::shared_ptr<DescriptorState> descriptor,
                              const Options& options, int* error) {
  uv_loop_t* loop = nullptr;
  *error = -EBADF;
  if (descriptor->fd() < 0) return nullptr;
  *error = -ENOSYS;
  if (napi_get_uv_event_loop(env, &loop) != napi_ok) return nullptr;

  auto* handle = new PollHandle(env, std::move(descriptor), options);
  handle->poll_.data = handle;
  napi_async_init(env, nullptr, Napi::String::New(env, "vhost-iotlb:poll"), &handle->context_);
  *error = -ENOMEM;
  if (handle->context_ != nullptr) {
    *error = uv_poll_init(loop, &handle->poll_, handle->descriptor_->fd());
  }
  if (*error != 0) {
    handle->DestroyContext();
    delete handle;
    return nullptr;
  }
  handle->environment_->open_polls.insert(handle);
  handle->descriptor_->polls.insert(handle);
  *error = uv_poll_start(&handle->poll_, UV_READABLE, OnEvent);
  if (*error == 0) return handle;
  handle->Close();
  return nullptr;
}

void PollHandle::Close() {
  open_ = false;
  environment_->open_polls.erase(this);
  environment_->closing_handles++;
  descriptor_->polls.erase(this);
  uv_close(reinterpret_cast<uv_handle_t*>(&poll_), OnClosed);
  // Everything of JavaScript goes now: when the callback runs, the environment may be ending.
  listener_.Reset();
  buffer_.Reset();
  if (!calling_) DestroyContext();
  if (Poller* owner = std::exchange(owner_, nullptr)) owner->Forget();
}

void PollHandle::OnClosed(uv_handle_t* handle) {
  auto* self = static_cast<PollHandle*>(handle->data);
  Environment* environment = self->environment_;
  delete self;
  environment->HandleClosed();
}

void PollHandle::DestroyContext() {
  if (napi_async_context context = std::exchange(context_, nullptr)) {
    napi_async_destroy(env_, context);
  }
}

void PollHandle::OnEvent(uv_poll_t* poll, int status, int events) {
  auto* self = static_cast<PollHandle*>(poll->data);
  Napi::HandleScope scope(self->env_);
  if (status < 0) {
    self->Fail(status);
  } else if (self->buffer_.IsEmpty()) {
    self->Call(self->listener_.Value(), events);
  } else {
    self->DeliverBatches();
  }
}

int64_t PollHandle::Drain() {
  Bytes bytes;
  // The buffer may have been detached since: there is nowhere left to read to.
  if (!ViewBytes(buffer_.Value(), &bytes) || bytes.length < size_) return -EFAULT;
  // libuv has made the descriptor non-blocking.
  int64_t count = ReadMessages(descriptor_->fd(), false, bytes, size_);
  return count == 0 ? -ENODATA : count;
}

void PollHandle::DeliverBatches() {
  const uint64_t start = busy_nanoseconds_ == 0 ? 0 : uv_hrtime();
  uint64_t last = start;
  for (;;) {
    Napi::HandleScope scope(env_);
    int64_t count = Drain();
    if (count < 0 && count != -EAGAIN) return Fail(count);
    if (count > 0) Call(listener_.Value(), count);
    if (!open_ || busy_nanoseconds_ == 0) return;
    uint64_t now = uv_hrtime();
    if (count > 0) last = now;
    if (now - last >= busy_nanoseconds_ || now - start >= kLongestTurn) return;
  }
}

void PollHandle::Call(const Napi::Function& listener, int64_t value) {
  napi_value global = nullptr;
  napi_value argument = nullptr;
  napi_value result = nullptr;
  if (napi_get_global(env_, &global) != napi_ok ||
      napi_create_int64(env_, value, &argument) != napi_ok) {
    return;
  }
  calling_ = true;
  napi_status status = napi_make_callback(env_, context_, global, listener, 1, &argument, &result);
  calling_ = false;
  if (!open_) DestroyContext();
  if (status == napi_ok) return;
  // Nobody above would see the exception.
  bool pending = false;
  napi_value exception = nullptr;
  if (napi_is_exception_pending(env_, &pending) == napi_ok && pending &&
      napi_get_and_clear_last_exception(env_, &exception) == napi_ok) {
    napi_fatal_exception(env_, exception);
  }
}

// Closed before the call: the listener may start a new poll on the descriptor, which libuv would
// take off the loop together with this one.
void PollHandle::Fail(int64_t error) {
  Napi::Function listener = listener_.Value();
  calling_ = true;
  Close();
  Call(listener, error);
}

Napi::Function Poller::Define(Napi::Env env) {
  return DefineClass(env, "Poller",
                     {InstanceMethod<&Poller::CloseMethod>("close"),
                      InstanceMethod<&Poller::RefMethod>("ref"),
                      InstanceMethod<&Poller::UnrefMethod>("unref")});
}

Poller::Poller(const Napi::CallbackInfo& info) : TaggedWrap<Poller>(info) {
  handle_ = std::exchange(Environment::Of(info.Env())->new_poller, nullptr);
  if (handle_ == nullptr) {
    ThrowIllegalConstructor(info.Env());
    return;
  }
  handle_->SetOwner(this);
  Ref();
  Tag(info);
}

Poller::~Poller() {
  if (handle_ == nullptr) return;
  handle_->SetOwner(nullptr);
  handle_->Close();
}

void Poller::Forget() {
  handle_ = nullptr;
  Unref();
}

void Poller::CloseMethod(const Napi::CallbackInfo&) {
  if (handle_ != nullptr) handle_->Close();
}

void Poller::RefMethod(const Napi::CallbackInfo&) {
  if (handle_ != nullptr) handle_->Ref();
}

void Poller::UnrefMethod(const Napi::CallbackInfo&) {
  if (handle_ != nullptr) handle_->Unref();
}

Napi::Value Poller::Poll(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  auto* descriptor = Descriptor::Read(info[0], "descriptor");
  if (descriptor == nullptr) return Napi::Value();
  PollHandle::Options options = {info[1], 0, {}, 0};
  if (!IsNullish(info[1])) {
    Bytes bytes;
    if (!ReadBytes(info[1], "buffer", &bytes) ||
        !ReadInteger(info[2], "size", 1, static_cast<double>(bytes.length), &options.size)) {
      return Napi::Value();
    }
  }
  if (!info[3].IsFunction()) {
    ThrowType(env, "listener", "a function");
    return Napi::Value();
  }
  options.listener = info[3].As<Napi::Function>();
  if (!IsNullish(info[4])) {
    double microseconds = 0;
    if (!ReadInteger(info[4], "busyMicroseconds", 0, kMostBusyMicroseconds, &microseconds)) {
      return Napi::Value();
    }
    options.busy_nanoseconds = static_cast<uint64_t>(microseconds) * 1000;
  }
  int error = 0;
  PollHandle* handle = PollHandle::Start(env, descriptor->state(), options, &error);
  if (handle == nullptr) return Napi::Number::New(env, error);

  Environment* environment = Environment::Of(env);
  environment->new_poller = handle;
  Napi::Object object = environment->poller_class.New({});
  // The constructor did not run: no stack left, or the environment is ending.
  if (PollHandle* orphan = std::exchange(environment->new_poller, nullptr)) orphan->Close();
  return object;
}

}  // namespace vhost_iotlb
