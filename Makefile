# Two commands do it all on a machine with Go, git and make:
#   make demo    the whole story on a scratch directory
#   make test    every check there is

GO       ?= go
FUZZTIME ?= 30s
SOAK     ?= 10m

GOLANGCI_VERSION := v2.12.2
GOLANGCI         := bin/golangci-lint-$(GOLANGCI_VERSION)

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# The version is stamped below; a checkout that belongs to another user builds too.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

.PHONY: build
build: ## bin/varve, one static binary
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/varve ./cmd/varve

.PHONY: demo
demo: build ## import, serve, snapshot, roll back, clone, export; every step checked
	bin/varve demo

.PHONY: test
test: packages s3server fmt vet lint ## every check, the tests last
	$(GO) test -race -timeout 35m ./...
	$(GO) test -timeout 20m ./internal/pool # all crashes, of which there are fewer under the race detector

.PHONY: packages
packages: ## the programs that tests use as clients
	.ci/packages

.PHONY: s3server
s3server: ## the S3 server that tests start, into Go's cache of programs
	cd test/s3server && CGO_ENABLED=0 $(GO) tool -n versitygw >/dev/null

.PHONY: fmt
fmt:
	@unformatted=$$(gofmt -l bench cmd internal test); \
	if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet:
	$(GO) vet ./...

.PHONY: lint
lint: $(GOLANGCI)
	$(GOLANGCI) run ./...

$(GOLANGCI):
	GOBIN=$(CURDIR)/bin $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv bin/golangci-lint $@

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each
	@set -e; for package in $$($(GO) list ./...); do \
		for target in $$($(GO) test -run '^$$' -list '^Fuzz' $$package | grep '^Fuzz' || true); do \
			echo "$$package $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) $$package; \
		done; \
	done

.PHONY: soak
soak: packages s3server ## two hosts over one bucket that goes away, for SOAK; SEED repeats the choices of a run
	VARVE_TEST_SOAK=$(SOAK) VARVE_TEST_SEED=$(SEED) $(GO) test ./test/clients -run TwoHosts -v -timeout 0

.PHONY: bench
bench: build s3server ## beside qemu-nbd, nbdkit, restic, borg: bench/RESULTS.md; BENCH holds its flags (-h tells)
	.ci/packages bench
	$(GO) run ./bench $(BENCH)

.PHONY: profile
profile: build packages ## CPU profiles of varve under each load, or BENCH="-loads REGEXP", in bin/profiles
	$(GO) run ./bench -only peers -servers '^varve$$' -rounds 1 -time 10s -profile bin/profiles -out bin/profiles $(BENCH)

.PHONY: man
man: build ## dist/man/*.1
	bin/varve man dist/man

.PHONY: clean
clean:
	rm -rf bin dist/man
