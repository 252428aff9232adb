// Lets Debian's libstdc++ headers, which are configured for glibc, read musl's headers.
//
// It comes before everything else. What glibc has and musl has not is taken back here; what the
// addon never uses of it, such as locales, needs a name only.
#pragma once
#define __GLIBC_PREREQ(major, minor) 0
#define _GLIBCXX_GTHREAD_USE_WEAK 0
#include <bits/c++config.h>
#undef _GLIBCXX_USE_PTHREAD_COND_CLOCKWAIT
#undef _GLIBCXX_USE_PTHREAD_MUTEX_CLOCKLOCK
#undef _GLIBCXX_USE_PTHREAD_RWLOCK_CLOCKLOCK
#include <locale.h>
typedef locale_t __locale_t;
