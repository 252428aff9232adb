{
  "targets": [
    {
      "target_name": "vhost_iotlb",
      "conditions": [
        [
          "OS=='linux'",
          {
            "sources": [
              "native/addon.cc",
              "native/affinity.cc",
              "native/arguments.cc",
              "native/descriptor.cc",
              "native/environment.cc",
              "native/guards.cc",
              "native/ioctl.cc",
              "native/mapping.cc",
              "native/messages.cc",
              "native/oldest_libc.cc",
              "native/poller.cc",
              "native/process_lock.cc",
              "native/spin.cc",
              "native/vcpu.cc"
            ],
            "include_dirs": [
              "<!(node -p \"require('node-addon-api').include_dir\")"
            ],
            "defines": [
              "NAPI_VERSION=9",
              "NAPI_DISABLE_CPP_EXCEPTIONS",
              "NODE_ADDON_API_DISABLE_DEPRECATED",
              "NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS"
            ],
            "cflags": ["-Wall", "-Wextra", "-fvisibility=hidden"],
            "cflags_cc": ["-std=c++17", "-fno-exceptions", "-fno-rtti"]
          },
          { "type": "none" }
        ]
      ]
    }
  ]
}
