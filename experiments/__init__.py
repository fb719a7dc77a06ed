"""Programs, run from the repository's root: `python -m experiments.<name>`.

On Linux they start anew with huge pages asked for, which glibc decides when a
process starts. XLA on CPU frees its buffers after every step, and the kernel
hands out and clears new ones page by page: 45 ms for each 64 MB of 4 KB pages,
5 ms of huge ones. The quickstart trains 10 % faster. Where GLIBC_TUNABLES is
set already nothing happens.
"""

import os
import sys

# '-m' is the name of a program of this package while the package is imported;
# whoever else imports it is left alone.
if sys.platform == 'linux' and sys.argv[0] == '-m':
  if 'GLIBC_TUNABLES' not in os.environ:
    os.environ['GLIBC_TUNABLES'] = 'glibc.malloc.hugetlb=1'
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
