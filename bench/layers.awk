# SPDX-License-Identifier: BSD-3-Clause
#
# Which layer of the chain holds what: cuts the area into runs of 1 to 32
# clusters, gives about 44 % of them to the base and 7 % to each of the
# overlays, and prints the runs of one layer as "first-cluster clusters".
# The seed is fixed, so that the layers together hold each cluster just once.
# Usage: awk -v clusters=N -v overlays=N -v layer=N -f layers.awk

BEGIN {
  srand (1)
  for (first = 0; first < clusters; first += count) {
    count = 1 + int (rand () * 32)
    if (first + count > clusters)
      count = clusters - first
    owner = 0
    r = rand ()
    if (r > 0.44)
      owner = 1 + int ((r - 0.44) / 0.56 * overlays)
    if (owner > overlays)
      owner = overlays
    if (owner == layer)
      print first, count
  }
}
