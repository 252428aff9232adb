// Objects with a native half, told from all others by a type tag.
//
// Node-API compares the receiver of a method with its class, but neither the receiver of an
// accessor nor an argument: without the tag, `getter.call(other)` reads memory of another class.
#ifndef VHOST_IOTLB_TAGGED_WRAP_H_
#define VHOST_IOTLB_TAGGED_WRAP_H_

#include <napi.h>

#include "arguments.h"

namespace vhost_iotlb {

// T has `kExpected`, what an error message calls it.
template <typename T>
class TaggedWrap : public Napi::ObjectWrap<T> {
 public:
  using Napi::ObjectWrap<T>::ObjectWrap;

  // The native half of an argument; null after a TypeError has been thrown.
  static T* Read(const Napi::Value& value, const char* name) {
    napi_env env = value.Env();
    bool tagged = false;
    void* object = nullptr;
    if (value.IsObject() &&
        napi_check_object_type_tag(env, value, &TypeTag(), &tagged) == napi_ok && tagged &&
        napi_unwrap(env, value, &object) == napi_ok) {
      return static_cast<T*>(object);
    }
    ThrowType(env, name, T::kExpected);
    return nullptr;
  }

  // What node-addon-api calls for the receiver of each method and accessor.
  static T* Unwrap(Napi::Object receiver) { return Read(receiver, "this"); }

 protected:
  // The last step of a constructor that succeeds.
  void Tag(const Napi::CallbackInfo& info) {
    napi_type_tag_object(info.Env(), info.This(), &TypeTag());
  }

  static void ThrowIllegalConstructor(napi_env env) {
    napi_throw_type_error(env, "ERR_ILLEGAL_CONSTRUCTOR", "Illegal constructor");
  }

 private:
  // Its own address in it: a second copy of the addon, of another version, has other tags.
  static const napi_type_tag& TypeTag() {
    static const napi_type_tag tag = {0x7f2c1e86b0a64d1d, reinterpret_cast<uint64_t>(&tag)};
    return tag;
  }
};

}  // namespace vhost_iotlb

#endif  // VHOST_IOTLB_TAGGED_WRAP_H_
