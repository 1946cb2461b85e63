// Command varve stores virtual disks, serves them, and snapshots them.
package main

func main() {}
