package main

import (
	"os/exec"
	"syscall"
)

// tie makes a child process go when this one goes, however that ends.
func tie(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
