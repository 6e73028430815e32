//! COPY and ADD planned on trees.
