# Runs one test: NUMBER SECONDS DIRECTORY PROGRAM NAME. Descriptor 9 is the serial port, which no test may have.
export RUST_BACKTRACE=0
number=$1 limit=$2 program=$4 name=$5
cd "$3" || exit 1
tell() {
    flock /run/tell.lock cat >&9
}
now() {
    cut -d ' ' -f 1 /proc/uptime
}
output=/run/output.$number
echo "start $number" | tell
start=$(now)
timeout --foreground -s KILL "$limit" "$program" --exact "$name" --nocapture >"$output" 2>&1 </dev/null 9>&-
code=$?
taken=$(echo "$start $(now)" | awk '{ printf "%.2f", $2 - $1 }')
case $code in
0) echo "pass $number $taken" | tell ;;
*)
    outcome=fail
    [ "$code" -ne 137 ] || outcome=slow
    # All output at once, so that the lines of two tests do not mix; from its end if there is much.
    {
        echo "$outcome $number $taken"
        tail -c 16000 "$output" | sed 's/^/| /'
        # A last line without its end would swallow the next.
        echo "| (exit code $code)"
    } >"$output.tail"
    tell <"$output.tail"
    ;;
esac
rm -f "$output" "$output.tail"
