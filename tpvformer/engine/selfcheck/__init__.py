"""The first minute on new hardware: does everything that training needs work here, and give the CPU's numbers?"""
