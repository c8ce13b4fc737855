"""Many devices: a mesh, who holds what, and how tokens find their experts.

Reading order: mesh (named axes), rules (logical axes to mesh axes), exchange (rows to other devices
and back), expert (dropless dispatch in rounds and stages), mesh_backend (the layers' functions on a
mesh), comm_volume (bytes on each kind of link), eplb (which experts to copy, and
where), jaxprs and overlap (two computations, each exchange beside work of the other), launch and
meet (several processes).
"""
