"""persistmem.Cache behind the interfaces of other libraries, each in a module that only its users import."""
