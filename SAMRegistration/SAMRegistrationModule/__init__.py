"""What the SAMRegistration module is made of.

Three layers; each imports only from those before it:

- MRML: Geometry, Flattening, VolumeFiles, Segmentations, Markups, TransformNodes, OutputNodes, Tables.
  Worlds are RAS here and become LPS in the files that leave this layer.
- Logic: Presets, Requests, Jobs, Worker, RegistrationLogic, Environment. No Qt, no slicer.app.
- Widget: one file per section of the panel.

Nothing but the standard library, slicer and vtk is imported when a file is loaded, and no file does anything then.
"""
