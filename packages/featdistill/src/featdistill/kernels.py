"""The native libraries of this package, for `loom ext build`."""

from featdistill.models import cell_adam, field, kilo, kilo_cuda, raster

LIBRARIES = {
    "featdistill_raster": raster.library,
    "featdistill_field": field.library,
    "featdistill_kilo": kilo.library,
    "featdistill_kilo_ray": kilo_cuda.library,
    "featdistill_cell_adam": cell_adam.library,
}
