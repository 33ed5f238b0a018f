# Runs the test $2 of the executable $1, and says on the second serial line how it ended (report.rs reads it).

# Seconds; loading the programs is most of a test's work, and slow in an emulator.
limit=900

printed=/tmp/printed.$$
# To the console: a panic is seen behind the tests that it came from.
echo "hawser: $1 $2 begins" >/dev/kmsg
start=$(date +%s)
timeout -s KILL $limit "/tests/$1" --exact "$2" --include-ignored --nocapture --test-threads=1 \
    >$printed 2>&1 </dev/null
status=$?
seconds=$(($(date +%s) - start))

# One test at a time has the line.
until mkdir /run/speaking 2>/dev/null; do sleep 0.1; done
{
    # The end of a verifier's log, which can be long, is what says why.
    tail -n 200 $printed | sed 's/^/| /'
    echo "end $1 $2 $status $seconds"
} >/dev/ttyS1
rmdir /run/speaking
rm $printed
