//go:build !unix

package main

import (
	"errors"
	"os"
	"syscall"
)

const immediateShutdown = syscall.SIGKILL

var errNoPrivatePostgres = errors.New("a private PostgreSQL runs only on Unix; set -database-url to a PostgreSQL server")

func postgresAccount() (*account, error)                  { return nil, errNoPrivatePostgres }
func childAttributes(runAs *account) *syscall.SysProcAttr { return nil }
func explainAccess(err error) error                       { return err }
func lockFile(path string) (*os.File, error)              { return nil, errNoPrivatePostgres }
func checkPrivate(path string, uid int) error             { return errNoPrivatePostgres }
func stopLeftovers(cluster string) error                  { return errNoPrivatePostgres }
func reapOrphans()                                        {}
