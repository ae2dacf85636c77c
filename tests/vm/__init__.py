"""The project on real kernels, in virtual machines. The only place that knows of QEMU, and where kernels are found."""
