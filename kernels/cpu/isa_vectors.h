// Vectors of floats for each instruction set: vectors.h in the namespaces of each_isa.h.
#pragma once
#include <cstring>
#include "../../runtime/dtypes.h"

#define ISA_FILE "vectors.h"
#include "each_isa.h"
