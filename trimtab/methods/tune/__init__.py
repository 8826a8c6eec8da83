"""Steps of a recipe that train what is there, so that it says again what it said before."""
